import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from deeplearning_tutorial.files import atomic
from deeplearning_tutorial.files.atomic import remove_stale_parts, try_writing, write_atomically
from deeplearning_tutorial.training.parameters import check_save_path, check_writable


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mounted(folder):
    """Mount another file over c.npz, as containers do; yield the folder of the other file."""
    Path("c.npz").touch()
    Path("outside").mkdir()
    Path("outside/c.npz").write_bytes(b"older and longer")
    command = ["mount", "--bind", "outside/c.npz", "c.npz"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    yield Path("outside")
    subprocess.run(["umount", "c.npz"], check=True)


def failing(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def contents():
    """The contents of all files except links."""
    files = (each for each in Path().rglob("*") if each.is_file() and not each.is_symlink())
    return {each: each.read_bytes() for each in files}


def assert_writes(path, target=None):
    """`try_writing` leaves no trace, and `write_atomically` writes ``target`` and nothing else."""
    before = contents()
    try_writing(path)
    assert contents() == before
    write_atomically(path, b"new")
    assert contents() == before | {target or path: b"new"}


def test_try_writing_never_creates_the_file_itself(monkeypatch):
    # Another process might open it and lose what it writes.
    opened = []

    def record(path, *args, **kwargs):
        opened.append(Path(path).resolve())
        return open(path, *args, **kwargs)

    monkeypatch.setattr(atomic, "open", record, raising=False)
    try_writing(Path("c.npz"))
    assert opened and Path("c.npz").resolve() not in opened
    assert list(Path().iterdir()) == []


def test_a_file_is_created_or_replaced():
    assert_writes(Path("c.npz"))
    assert_writes(Path("c.npz"))


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".npz", "数" * 83 + ".npz", "a b.npz", "-.npz", ".npz", "a:b?*.npz", "new\nline.npz"]
)
def test_every_name_that_the_system_accepts_is_written(name):
    path = Path(name)
    assert check_writable(path, "save") == path
    assert_writes(path)


def test_the_name_of_a_part_is_short_and_stale_parts_are_removed():
    path = Path("数" * 83 + ".npz")
    with atomic.part_file(path) as (_file, part):
        assert len(os.fsencode(part.name)) < 60
        os.utime(part, (time.time() - 3601,) * 2)
        remove_stale_parts(Path("other.npz"))
        assert part.exists()
        remove_stale_parts(path)
        assert not part.exists()


@pytest.mark.parametrize("content", [b"old", None])
def test_a_link_stays_and_its_target_is_written(content):
    Path("elsewhere").mkdir()
    target = Path("elsewhere/c.npz")
    if content is not None:
        target.write_bytes(content)
    Path("link.npz").symlink_to(target)
    Path("to-link.npz").symlink_to("link.npz")
    assert_writes(Path("to-link.npz"), target)
    assert Path("link.npz").is_symlink() and Path("to-link.npz").is_symlink()


def test_where_the_working_directory_was_removed_a_relative_path_is_named(folder):
    (folder / "gone").mkdir()
    os.chdir("gone")
    (folder / "gone").rmdir()
    with pytest.raises(FileNotFoundError, match="the working directory is gone: 'c.npz'"):
        write_atomically(Path("c.npz"), b"new")
    write_atomically(folder / "c.npz", b"new")
    assert (folder / "c.npz").read_bytes() == b"new"


def test_stale_parts_of_a_links_target_are_removed():
    Path("elsewhere").mkdir()
    Path("link.npz").symlink_to("elsewhere/c.npz")
    stale = Path("elsewhere/.c.npz.12345678.part")
    stale.touch()
    os.utime(stale, (time.time() - 3601,) * 2)
    remove_stale_parts(Path("link.npz"))
    assert not stale.exists()


def test_a_mounted_file_is_written_in_place(mounted):
    try_writing(Path("c.npz"))
    write_atomically(Path("c.npz"), b"new")
    assert Path("c.npz").read_bytes() == (mounted / "c.npz").read_bytes() == b"new"
    assert sorted(os.listdir()) == ["c.npz", "outside"]


@pytest.mark.parametrize("function", ["replace", "open"])
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_that_cannot_be_replaced_is_written_in_place(monkeypatch, function, number):
    path = Path("c.npz")
    path.write_bytes(b"older and longer")
    if function == "replace":
        monkeypatch.setattr(os, "replace", failing(number))
    else:
        # A folder that accepts no new files.
        def no_new(file, mode="r", **options):
            return failing(number)() if "x" in mode else open(file, mode, **options)

        monkeypatch.setattr(atomic, "open", no_new, raising=False)
    assert_writes(path)
    with pytest.raises(OSError):
        # But no new file can be created there.
        write_atomically(Path("new.npz"), b"new")
    assert os.listdir() == ["c.npz"]


def test_any_other_failure_leaves_the_file_unchanged(monkeypatch):
    path = Path("c.npz")
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir() == ["c.npz"]


def test_a_mount_point_that_cannot_be_written_is_rejected_at_the_start(monkeypatch):
    path = Path("c.npz")
    path.write_bytes(b"old")

    def read_only(file, mode="r", **options):
        return failing(errno.EACCES)() if "+" in mode else open(file, mode, **options)

    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    try_writing(path)
    monkeypatch.setattr(atomic, "open", read_only, raising=False)
    with pytest.raises(PermissionError, match="save='c.npz' cannot be written: Permission denied; choose"):
        check_save_path("c.npz")
    # A file system without hard links is accepted.
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    check_save_path("c.npz")


@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize(
    "path, kind, message",
    [
        ("x" * 256, OSError, "cannot be written: File name too long; choose another place"),
        ("a\0b", ValueError, "cannot be written: its name holds a null character; choose"),
        ("folder", PermissionError, "log='folder' cannot be written: it is not a file; choose another place"),
        ("/dev/full", PermissionError, "log='/dev/full' cannot be written: it is not a file"),
        ("pipe", PermissionError, "log='pipe' cannot be written: it is not a file"),
        ("loop", OSError, "log='loop' cannot be written: Too many levels of symbolic links"),
        ("missing/c", FileNotFoundError, "log='missing/c': there is no folder 'missing'; create it first"),
        ("file/c", FileNotFoundError, "log='file/c': there is no folder 'file'; create it first"),
        ("dangling", FileNotFoundError, "log='dangling': there is no folder '{}/gone'; create it first"),
    ],
)
def test_an_unwritable_path_is_rejected_by_name_without_a_trace(folder, path, kind, message, appended):
    Path("folder").mkdir()
    Path("file").touch()
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("gone/c")
    before = sorted(os.listdir())
    with pytest.raises(kind) as caught:
        check_writable(path, "log", appended=appended)
    assert message.format(folder) in str(caught.value) and "log=" in str(caught.value)
    assert sorted(os.listdir()) == before
