"""Fetch MNIST's four original files from public mirrors, each verified before it gets its name.

Nothing here can hang: once no byte has come for `SILENCE_LIMIT` seconds, over all mirrors and files
together, the download is given up, be it a name look-up, a connection or a transfer that stands still.
A slow but steady one goes on. ``pooch`` verifies as well, but neither its time limits nor those of
``requests`` cover a name look-up or the sum over mirrors, hence the thread and the clock.
"""

import hashlib
import threading
import time
from contextlib import suppress
from urllib.parse import urljoin

import requests
from tqdm import tqdm

from deeplearning_tutorial.atomic_files import part_file, put_in_place, remove_stale_parts, write_all
from deeplearning_tutorial.bounded import cut
from deeplearning_tutorial.streams import stderr

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# Size in bytes and SHA-256.
EXPECTED = {
    "train-images-idx3-ubyte.gz": (
        9912422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte.gz": (
        28881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte.gz": (
        1648877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        4542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}

# Seconds; one less than the 15 that are promised, which leaves time to start and to report.
SILENCE_LIMIT = 14.0
_POLL = 0.1
MAX_REDIRECTS = 5


class DownloadError(OSError):
    """No mirror gave a file; the message has a line for each mirror."""


class _Failure(Exception):
    """Why one mirror did not give one file."""


class _Silence:
    """The time since the last byte came, from whichever mirror."""

    def __init__(self):
        self.last = time.monotonic()

    def heard(self):
        self.last = time.monotonic()

    def left(self):
        return SILENCE_LIMIT - (time.monotonic() - self.last)


class _Session(requests.Session):
    """Follows no redirect by itself, which would read the redirect's own body, of any length, into memory."""

    def get_redirect_target(self, resp):
        return None

    def target_of(self, response):
        return super().get_redirect_target(response)


class _Transfer:
    """One file on its way from one mirror.

    It runs in a thread of its own, which is a daemon and never joined: a name look-up that hangs cannot be
    interrupted, only left behind. A transfer left behind finds its file closed and ends.
    """

    def __init__(self, url, file, size, silence):
        self.url, self.file, self.size, self.silence = url, file, size, silence
        self.received = 0
        self.error = None
        self.unwritable = None
        self.done = threading.Event()
        threading.Thread(target=self._run, name=f"download {url}", daemon=True).start()

    def _run(self):
        try:
            self._receive()
        except BaseException as error:  # a thread has nobody to raise to
            self.error = error
        self.done.set()

    def _receive(self):
        # The files are gzip by themselves; a server must not unpack them on the way.
        headers = {"Accept-Encoding": "identity"}
        # The caller's clock decides; this timeout only ends a thread that was left behind.
        options = {"stream": True, "timeout": 2 * SILENCE_LIMIT, "headers": headers}
        url = self.url
        with _Session() as session:
            for _ in range(1 + MAX_REDIRECTS):
                with session.get(url, **options) as response:
                    target = session.target_of(response)
                    if target is None:
                        return self._receive_body(response)
                    url = urljoin(url, target)
        raise _Failure(f"redirects more than {MAX_REDIRECTS} times, last to {cut(url)}")

    def _receive_body(self, response):
        response.raise_for_status()
        if response.status_code != 200:
            raise _Failure(f"answers {response.status_code} {cut(str(response.reason))}")
        # iter_content waits for whole chunks; read1 gives what has come, so a trickle counts as data.
        while chunk := response.raw.read1(1 << 16):
            self._write(chunk)
            self.silence.heard()
            self.received += len(chunk)
            if self.received > self.size:
                raise _Failure(f"sends more than the {self.size} bytes of the file")

    def _write(self, chunk):
        try:
            write_all(self.file, chunk)
        except OSError as error:
            self.unwritable = error
            raise


def _reason(error):
    while error.__context__ is not None:  # requests wraps the operating system's plain words thrice
        error = error.__context__
    return cut(str(error)) or type(error).__name__


def sha256_of(path):
    """Return a file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_original(path):
    """Tell whether ``path`` is, by name and SHA-256, one of MNIST's four files."""
    if path.name not in EXPECTED or not path.is_file():
        return False
    size, sha256 = EXPECTED[path.name]
    # A file of another size is none, however long it takes to read.
    return path.stat().st_size == size and sha256_of(path) == sha256


def _fetch(url, target, silence, mirrors_left, bar):
    """Fetch one file from one mirror; raise `_Failure` where it does not give it."""
    size, sha256 = EXPECTED[target.name]
    start = time.monotonic()
    # A silent mirror may use up no more than its share, so that the next ones have their turn.
    share = silence.left() / mirrors_left
    if share <= 0:
        raise _Failure("not tried, the time was up")
    with part_file(target) as (file, part):
        transfer = _Transfer(url, file, size, silence)
        before = bar.n
        while not transfer.done.wait(_POLL):
            bar.update(before + transfer.received - bar.n)
            if silence.last > start:
                start, share = silence.last, SILENCE_LIMIT / mirrors_left
            if time.monotonic() - start > share:
                raise _Failure(f"silent for {share:.1f} s after {transfer.received} of {size} bytes")
        if transfer.unwritable is not None:
            raise transfer.unwritable
        if transfer.error is not None:
            raise _Failure(_reason(transfer.error))
        found = sha256_of(part)
        if found != sha256:
            raise _Failure(f"{transfer.received} of {size} bytes with SHA-256 {found}, not {sha256}")
        # Opened once: another process may put it there at any moment.
        with suppress(FileNotFoundError):
            if sha256_of(target) == sha256:
                return
            print(f"Replacing {target}, which is not MNIST's original", file=stderr)
        put_in_place(file, part, target)
        # A disk that takes its time is not the mirrors' silence.
        silence.heard()


def download(folder):
    """Download MNIST's four IDX files.

    Parameters
    ----------
    folder : pathlib.Path
        Where they go; made if it is missing. Files that are there already with the right SHA-256 are kept,
        others of these names are replaced once the right one has come whole. Any number of processes may
        download into one folder at once.

    Raises
    ------
    DownloadError
        If no mirror gives one of the files.
    OSError
        If ``folder`` cannot be written or has no room.
    """
    try:
        _download(folder)
    except DownloadError:
        raise
    except OSError as error:
        needed = sum(size for size, _sha256 in EXPECTED.values()) / 1e6
        raise OSError(
            f"{folder} cannot be written ({error.strerror or error}); "
            f"MNIST takes {needed:.0f} MB there: make room, or make it writable"
        ) from error


def _download(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXPECTED:
        remove_stale_parts(folder / name)
    targets = [folder / name for name in EXPECTED if not is_original(folder / name)]
    total = sum(EXPECTED[target.name][0] for target in targets)
    mirrors = list(MIRRORS)
    silence = _Silence()
    print(f"Downloading MNIST into {folder}", file=stderr)
    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False, file=stderr) as bar:
        done = 0
        for target in targets:
            failures = []
            for n_tried, mirror in enumerate(mirrors):
                try:
                    _fetch(mirror + target.name, target, silence, len(mirrors) - n_tried, bar)
                except _Failure as failure:
                    failures.append(f"{mirror}{target.name}: {failure}")
                else:
                    mirrors.sort(key=lambda other: other != mirror)  # noqa: B023 - used at once
                    done += EXPECTED[target.name][0]
                    break
                finally:
                    bar.update(done - bar.n)
            else:
                raise DownloadError("\n".join(failures))
