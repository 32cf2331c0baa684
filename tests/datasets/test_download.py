import _thread
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deeplearning_tutorial.datasets import download as module
from deeplearning_tutorial.datasets.download import DownloadError, download, is_original

FILES = {"train-images-idx3-ubyte.gz": bytes(range(256)) * 40, "t10k-labels-idx1-ubyte.gz": b"labels" * 5}
# Longer than the garbage collection of a process that has run two thousand tests.
LIMIT = 2.0


class Mirror(ThreadingHTTPServer):
    """A local server whose ``behave(handler, body)`` answers every request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, behave):
        self.requested = []
        self.closing = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2].partition("?")[0]
                mirror.requested.append(name)
                try:
                    behave(self, FILES[name])
                except OSError:  # the client closed the connection
                    self.close_connection = True

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/mnist/"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass


def send_header(handler, length):
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.flush()


def good(handler, body):
    send_header(handler, len(body))
    handler.wfile.write(body)


def disconnects(handler, body):
    send_header(handler, len(body))
    handler.wfile.write(body[: len(body) // 2])


def corrupts(handler, body):
    send_header(handler, len(body))
    handler.wfile.write(body[:-1] + b"?")


def is_too_short(handler, body):
    send_header(handler, len(body) - 1)
    handler.wfile.write(body[:-1])


def never_ends(handler, body):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(body)


def responds_404(handler, body):
    handler.send_error(404)


def is_silent(handler, body):
    handler.server.closing.wait(20)


def stalls(handler, body):
    send_header(handler, len(body))
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.server.closing.wait(20)


def trickles(handler, body):
    send_header(handler, len(body))
    for byte in body[:15]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(LIMIT / 8)
    handler.wfile.write(body[15:])


def redirects(handler, body):
    """Redirect with an endless body."""
    if "/elsewhere/" in handler.path:
        return good(handler, body)
    handler.send_response(302)
    handler.send_header("Location", f"../elsewhere/{handler.path.rpartition('/')[2]}")
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 20))


def redirects_forever(handler, body):
    handler.send_response(307)
    handler.send_header("Location", f"{handler.path}?again")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def redirects_to_a_file(handler, body):
    handler.send_response(301)
    handler.send_header("Location", "file:///etc/hostname")
    handler.end_headers()


def redirects_nowhere(handler, body):
    handler.send_response(302)
    handler.end_headers()
    handler.wfile.write(body)


def fails_with_an_endless_body(handler, body):
    handler.send_response(503)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 20))


@pytest.fixture
def mirrors(monkeypatch):
    """Start mirrors with the given behaviours, and download from them."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    table = {name: (len(body), hashlib.sha256(body).hexdigest()) for name, body in FILES.items()}
    monkeypatch.setattr(module, "EXPECTED", table)
    monkeypatch.setattr(module, "READ_TIMEOUT", LIMIT)
    started = []

    def start(*behaviours):
        started.extend(Mirror(behave) for behave in behaviours)
        monkeypatch.setattr(module, "MIRRORS", tuple(mirror.url for mirror in started))
        return started

    yield start
    for mirror in started:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


def assert_complete(folder):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def failures_of(folder):
    begin = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        download(folder)
    assert time.monotonic() - begin < 1.5 * LIMIT + 1
    return str(caught.value).splitlines()


def test_a_good_mirror_delivers_every_file_under_its_name(tmp_path, mirrors, capsys):
    [mirror] = mirrors(good)
    folder = tmp_path / "new" / "data"
    download(folder)
    assert_complete(folder)
    assert mirror.requested == list(FILES)
    assert all(is_original(path) for path in folder.iterdir())
    # No progress bar, because stderr is not a terminal.
    out, err = capsys.readouterr()
    assert out == "" and err == f"Downloading MNIST into {folder}\n"


def test_a_redirect_is_followed_without_reading_its_body(tmp_path, mirrors):
    mirrors(redirects)
    tracemalloc.start()
    try:
        download(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert_complete(tmp_path)


@pytest.mark.parametrize(
    "behave, message",
    [
        (redirects_forever, "redirects more than 5 times, last to http://127.0.0.1:"),
        (redirects_to_a_file, "No connection adapters were found for 'file:///etc/hostname'"),
        (redirects_nowhere, "answers 302 Found"),
        (fails_with_an_endless_body, "503 Server Error"),
    ],
)
def test_a_response_other_than_the_file_is_a_failure_and_not_read(tmp_path, mirrors, behave, message):
    mirrors(behave)
    tracemalloc.start()
    try:
        [failure] = failures_of(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert message in failure
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_usual_permissions(tmp_path, mirrors):
    mirrors(good)
    download(tmp_path / "data")
    (tmp_path / "other").touch()
    usual = (tmp_path / "other").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "data").iterdir()} == {usual}


@pytest.mark.parametrize(
    "bad", [disconnects, corrupts, is_too_short, never_ends, responds_404, is_silent, stalls]
)
def test_the_second_mirror_is_used_and_then_tried_first(tmp_path, mirrors, bad):
    first, second = mirrors(bad, good)
    download(tmp_path)
    assert_complete(tmp_path)
    assert first.requested == list(FILES)[:1]
    assert second.requested == list(FILES)


@pytest.mark.parametrize(
    "bad, message",
    [
        (disconnects, "5120 bytes read, 5120 more expected"),
        (corrupts, "10240 of 10240 bytes with SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}"),
        (is_too_short, "10239 of 10240 bytes with SHA-256"),
        (never_ends, "sends more than the 10240 bytes"),
        (responds_404, "404 Client Error: Not Found"),
        (is_silent, r"silent for \d\.\d s after 0 of 10240 bytes"),
        (stalls, r"silent for \d\.\d s after 5120 of 10240 bytes"),
    ],
)
def test_failures_of_both_mirrors_are_reported_and_the_old_file_is_kept(tmp_path, mirrors, bad, message):
    old = tmp_path / list(FILES)[0]
    old.write_bytes(b"what was there before")
    first, second = mirrors(bad, bad)
    lines = failures_of(tmp_path)
    assert [line.partition(": ")[0] for line in lines] == [first.url + old.name, second.url + old.name]
    assert all(re.search(message, line) for line in lines), lines
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"what was there before"


def test_a_refused_connection_is_reported(tmp_path, mirrors):
    [mirror] = mirrors(good)
    mirror.shutdown()
    mirror.server_close()
    [line] = failures_of(tmp_path)
    assert "refused" in line


def test_a_name_look_up_that_hangs_is_given_up(tmp_path, mirrors, monkeypatch):
    over = threading.Event()
    mirrors(good, good)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(20) and None)
    lines = failures_of(tmp_path)
    over.set()
    assert len(lines) == 2 and all("silent for" in line for line in lines)


def test_silent_mirrors_share_the_limit(tmp_path, mirrors):
    mirrors(is_silent, stalls, is_silent)
    begin = time.monotonic()
    with pytest.raises(DownloadError):
        download(tmp_path)
    # The bytes of the second mirror restart the clock.
    assert time.monotonic() - begin < LIMIT / 3 + LIMIT + 1


def test_a_slow_but_steady_download_may_exceed_the_limit(tmp_path, mirrors):
    mirrors(trickles)
    begin = time.monotonic()
    download(tmp_path)
    assert time.monotonic() - begin > LIMIT
    assert_complete(tmp_path)


def test_time_on_a_slow_disk_is_not_silence(tmp_path, mirrors, monkeypatch):
    mirrors(good)
    monkeypatch.setattr(os, "fsync", lambda descriptor: time.sleep(1.2 * LIMIT))
    download(tmp_path)
    assert_complete(tmp_path)


def test_originals_are_kept_and_others_replaced(tmp_path, mirrors, capsys):
    first, second = FILES
    (tmp_path / first).write_bytes(FILES[first])
    (tmp_path / second).write_bytes(b"not the original")
    [mirror] = mirrors(good)
    download(tmp_path)
    assert_complete(tmp_path)
    assert mirror.requested == [second]
    assert f"Replacing {tmp_path / second}" in capsys.readouterr().err


def test_ctrl_c_stops_a_download_at_once_and_leaves_no_files(tmp_path, mirrors, monkeypatch, ctrl_c):
    monkeypatch.setattr(module, "READ_TIMEOUT", 30.0)
    mirrors(stalls)
    threading.Timer(0.4, _thread.interrupt_main).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path)
    assert time.monotonic() - begin < 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_an_os_error(tmp_path, mirrors):
    mirrors(good)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        download(tmp_path / "file" / "data")


def test_a_full_disk_is_reported_with_folder_and_fix_and_stops_the_download(tmp_path, mirrors):
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    old = tmp_path / list(FILES)[0]
    old.write_bytes(b"what was there before")
    first, second = mirrors(good, good)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as caught:
            download(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert type(caught.value) is OSError
    message = f"{tmp_path} cannot be written (File too large); MNIST takes 0 MB there: make room"
    assert str(caught.value).startswith(message)
    assert (first.requested, second.requested) == ([old.name], [])
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"what was there before"


def test_a_disk_that_is_full_at_the_final_sync_leaves_no_files(tmp_path, mirrors, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    mirrors(good)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written .No space left on device"):
        download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_threads_may_download_into_one_folder(tmp_path, mirrors, capsys):
    """Each transfer is half complete when the other begins."""
    both = threading.Barrier(2)

    def half_way(handler, body):
        send_header(handler, len(body))
        handler.wfile.write(body[:20])
        handler.wfile.flush()
        both.wait(10)
        handler.wfile.write(body[20:])

    mirrors(half_way)
    threads = [threading.Thread(target=download, args=(tmp_path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert_complete(tmp_path)
    assert "Replacing" not in capsys.readouterr().err


@pytest.fixture
def in_a_process(tmp_path):
    """Start a download in a separate process, from the file alone: importing the package takes seconds."""
    script = """
        import importlib.util, json, pathlib, sys
        path, folder, settings = sys.argv[1:]
        spec = importlib.util.spec_from_file_location("download", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        vars(module).update(json.loads(settings))
        module.download(pathlib.Path(folder))
    """
    started = []

    def start(folder):
        settings = {name: getattr(module, name) for name in ("MIRRORS", "EXPECTED", "READ_TIMEOUT")}
        arguments = [module.__file__, str(folder), json.dumps(settings)]
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_processes_may_download_into_one_folder(tmp_path, mirrors, monkeypatch, in_a_process):
    monkeypatch.setattr(module, "READ_TIMEOUT", 30.0)
    both = threading.Barrier(2)

    def good_once_both_ask(handler, body):
        both.wait(20)
        good(handler, body)

    mirrors(good_once_both_ask)
    processes = [in_a_process(tmp_path) for _ in range(2)]
    assert [process.wait(timeout=30) for process in processes] == [0, 0]
    assert_complete(tmp_path)


def test_a_later_download_removes_the_part_of_a_killed_one(
    tmp_path, mirrors, monkeypatch, in_a_process
):
    monkeypatch.setattr(module, "READ_TIMEOUT", 30.0)
    [mirror] = mirrors(stalls)
    process = in_a_process(tmp_path)
    deadline = time.monotonic() + 20
    while not (parts := [path for path in tmp_path.glob(".*.part") if path.stat().st_size]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    # Only half a file, and not under a name that `locate` finds.
    assert list(tmp_path.iterdir()) == parts
    assert parts[0].read_bytes() == FILES[list(FILES)[0]][:5120]

    mirrors(good)
    monkeypatch.setattr(module, "MIRRORS", module.MIRRORS[1:])
    download(tmp_path)
    assert parts[0].is_file()  # another process might still be writing it
    an_hour_ago = time.time() - 3601
    os.utime(parts[0], (an_hour_ago, an_hour_ago))
    mine = tmp_path / ".another.0123.part"
    mine.touch()
    os.utime(mine, (an_hour_ago, an_hour_ago))
    download(tmp_path)
    assert not parts[0].exists() and mine.is_file()
    mine.unlink()
    assert_complete(tmp_path)


def test_an_abandoned_transfer_does_not_keep_python_from_exiting(tmp_path):
    script = """
        import pathlib, socket, sys, time
        from deeplearning_tutorial.datasets import download
        socket.getaddrinfo = lambda *args, **kwargs: time.sleep(60)
        download.READ_TIMEOUT = 0.5
        try:
            download.download(pathlib.Path(sys.argv[1]))
        except download.DownloadError:
            print("given up")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (0, "given up\n")
    assert ended.stderr == f"Downloading MNIST into {tmp_path}\n"
