import errno
import io
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deeplearning_tutorial
from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.classify.pictures import read_picture
from deeplearning_tutorial.datasets import load_data, sample_path
from deeplearning_tutorial.datasets.formats import read_splits
from deeplearning_tutorial.datasets.image_sets import read_image_sets
from deeplearning_tutorial.files import bounded
from deeplearning_tutorial.files.bounded import open_file, short_repr
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.parameters import load_parameters, read_metadata
from deeplearning_tutorial.tune.search_space import read_space

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")

READERS = {
    "data": load_data,
    "images": lambda path: read_image_sets(path, 8, 10),
    "checkpoint": read_checkpoint,
    "model": read_model,
    "parameters": lambda path: load_parameters(path, {}),
    "about": read_metadata,
    "picture": read_picture,
    "space": lambda path: read_space(path, {}),
}


@pytest.fixture(
    params=["device", "endless device", "socket", "folder", "loop", "dangling", "missing", "locked"]
)
def odd(request, tmp_path, monkeypatch):
    """A path that is not a regular file or cannot be read."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "odd"
    if request.param == "device":
        path.symlink_to("/dev/null")
    elif request.param == "endless device":
        path.symlink_to("/dev/zero")
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            # A socket's path may be no longer than a hundred characters.
            server.bind("odd")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "loop":
        path.symlink_to("odd")
    elif request.param == "dangling":
        path.symlink_to("gone")
    elif request.param == "locked":
        path.touch(0)
        if os.access(path, os.R_OK):
            # The superuser may read everything, so raise what the system raises for other users.
            def refuse(path, *_):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

            monkeypatch.setattr(bounded, "open", refuse, raising=False)
    return path


@pytest.mark.parametrize("name", READERS)
def test_a_path_that_is_not_a_readable_file_is_rejected_by_name(odd, name):
    begin = time.monotonic()
    with pytest.raises((ValueError, OSError)) as caught:
        READERS[name](odd)
    assert str(odd) in str(caught.value)
    assert time.monotonic() - begin < 5


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system has no /proc")
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_cannot_seek_is_rejected_by_name(name):
    with pytest.raises((ValueError, OSError), match="/proc/self/maps"):
        READERS[name]("/proc/self/maps")


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_without_a_writer_is_rejected(pipe, monkeypatch, name):
    monkeypatch.setattr(bounded, "PIPE_BEGIN", 0.1)
    begin = time.monotonic()
    with pytest.raises((ValueError, OSError)) as caught:
        READERS[name](pipe)
    assert str(pipe) in str(caught.value)
    assert time.monotonic() - begin < 5


def test_a_silent_pipe_is_given_up(pipe, monkeypatch):
    monkeypatch.setattr(bounded, "PIPE_SILENCE", 0.1)
    writer = os.open(pipe, os.O_RDWR)
    try:
        with pytest.raises(
            ValueError, match="pipe is not a checkpoint .nothing came through the pipe for 0.1"
        ):
            read_checkpoint(pipe)
    finally:
        os.close(writer)


def test_an_endless_pipe_is_given_up(pipe, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_PIPED", 1 << 21)
    with piped(pipe, bytes(1 << 25)):
        with pytest.raises(ValueError, match="pipe cannot be read: more than 2097152 bytes came through"):
            read_splits(pipe)


class piped:
    """Write bytes to a pipe in a thread, in two pieces with a pause, as a slow command does."""

    def __init__(self, path, data):
        self._thread = threading.Thread(target=self._write, args=(path, data), daemon=True)

    def _write(self, path, data):
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                time.sleep(0.05)
                file.write(data[len(data) // 2 :])
        except BrokenPipeError:
            pass

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *exception):
        self._thread.join(10)


def test_data_models_and_pictures_are_read_from_pipes(pipe, tmp_path):
    with piped(pipe, sample_path().read_bytes()):
        found = read_splits(pipe)
    for (x, y), (expected_x, expected_y) in zip(found, read_splits(sample_path()), strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)
    np.savez(tmp_path / "m.npz", **{"classifier.W": np.zeros((784, 10)), "classifier.b": np.zeros(10)})
    with piped(pipe, (tmp_path / "m.npz").read_bytes()):
        assert read_model(pipe).script == "logistic_sgd"
    picture = np.zeros((9, 9), np.uint8)
    picture[3:6, 4] = 255
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    with piped(pipe, png.getvalue()):
        assert read_picture(pipe).shape == (784,)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system has no /dev/fd")
@pytest.mark.parametrize("source", ["<(cat {})", "/dev/stdin < {}", "/dev/stdin < <(cat {})"])
def test_the_command_reads_shell_substitutions_and_redirections(source):
    run = f"{sys.executable} -W error -m deeplearning_tutorial.datasets {source.format(sample_path())}"
    root = Path(deeplearning_tutorial.__file__).parents[1]
    ended = subprocess.run(
        ["bash", "-c", run],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "train   3000 images" in ended.stdout


def test_a_regular_file_is_opened_normally(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    with open_file(str(tmp_path / "file")) as file:
        assert file.read() == b"abc" and file.seek(1) == 1


def test_short_repr_truncates_a_long_value():
    assert short_repr("a\n") == "'a\\n'"
    assert short_repr("x" * 60_000) == f"'{'x' * 199} ..."


@pytest.mark.parametrize("name", ["checkpoint", "model", "parameters"])
@pytest.mark.parametrize("array", [np.zeros(3), np.array("no number"), np.array([None])])
def test_a_long_array_name_is_truncated_in_the_message(tmp_path, name, array):
    np.savez(tmp_path / "m.npz", **{"x" * 60_000: array, "state": np.frombuffer(b"{}", np.uint8)})
    with pytest.raises(ValueError) as caught:
        READERS[name](tmp_path / "m.npz")
    assert len(str(caught.value)) < 1500
