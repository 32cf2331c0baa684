"""Download MNIST's four original files from public mirrors; verify each before it gets its name.

A download cannot hang: it fails once no byte has arrived for `READ_TIMEOUT` seconds, counted over all
mirrors, whether a name look-up, a connection or a transfer is stuck. A slow but steady transfer continues.
``pooch`` verifies checksums as well, but it has one URL per file, and its timeouts, those of ``requests``,
limit neither a name look-up nor the total over mirrors; both also read a redirect's body without a limit.
"""

import hashlib
import threading
import time
from contextlib import suppress
from urllib.parse import urljoin

import requests
from tqdm import tqdm

from deeplearning_tutorial.files.atomic import part_file, put_in_place, remove_stale_parts, write_all
from deeplearning_tutorial.files.bounded import cut
from deeplearning_tutorial.files.streams import stderr

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

# Seconds. The documentation promises 15; one second is left for starting and reporting.
READ_TIMEOUT = 14.0
_POLL = 0.1
MAX_REDIRECTS = 5


class DownloadError(OSError):
    """Every mirror failed to deliver a file; the message has one line per mirror."""


class _Failure(Exception):
    """Why one mirror did not deliver one file."""


class _ReadTimeout:
    """The time since the last byte arrived from any mirror."""

    def __init__(self):
        self.last = time.monotonic()

    def reset(self):
        self.last = time.monotonic()

    def remaining(self):
        return READ_TIMEOUT - (time.monotonic() - self.last)


class _Session(requests.Session):
    """Does not follow redirects, because requests reads the body of a redirect, of any size, into memory."""

    def get_redirect_target(self, resp):
        return None

    def target_of(self, response):
        return super().get_redirect_target(response)


class _Transfer:
    """The transfer of one file from one mirror.

    It runs in a daemon thread that is never joined, because a name look-up that hangs can only be abandoned,
    not interrupted. An abandoned transfer ends when it finds its file closed.
    """

    def __init__(self, url, file, size, read_timeout):
        self.url, self.file, self.size, self.read_timeout = url, file, size, read_timeout
        self.received = 0
        self.error = None
        self.write_error = None
        self.done = threading.Event()
        threading.Thread(target=self._run, name=f"download {url}", daemon=True).start()

    def _run(self):
        try:
            self._receive()
        except BaseException as error:  # the calling thread raises it
            self.error = error
        self.done.set()

    def _receive(self):
        # The files themselves are gzip; the server must not decompress or recompress them.
        headers = {"Accept-Encoding": "identity"}
        # The caller enforces the limit; this timeout only ends an abandoned thread.
        options = {"stream": True, "timeout": 2 * READ_TIMEOUT, "headers": headers}
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
        # iter_content waits for full chunks; read1 returns what has arrived, so a trickle counts as data.
        while chunk := response.raw.read1(1 << 16):
            self._write(chunk)
            self.read_timeout.reset()
            self.received += len(chunk)
            if self.received > self.size:
                raise _Failure(f"sends more than the {self.size} bytes of the file")

    def _write(self, chunk):
        try:
            write_all(self.file, chunk)
        except OSError as error:
            self.write_error = error
            raise


def _reason(error):
    while error.__context__ is not None:  # requests wraps the system's error several times
        error = error.__context__
    return cut(str(error)) or type(error).__name__


def sha256_of(path):
    """Return a file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_original(path):
    """Whether ``path`` is one of MNIST's four files, by name and SHA-256."""
    if path.name not in EXPECTED or not path.is_file():
        return False
    size, sha256 = EXPECTED[path.name]
    # Check the size first: hashing a very large file would take long.
    return path.stat().st_size == size and sha256_of(path) == sha256


def _fetch(url, target, read_timeout, mirrors_left, bar):
    """Download one file from one mirror; raise `_Failure` if the mirror does not deliver it."""
    size, sha256 = EXPECTED[target.name]
    start = time.monotonic()
    # A silent mirror gets only its share of the time, so that the next ones are tried.
    share = read_timeout.remaining() / mirrors_left
    if share <= 0:
        raise _Failure("not tried, because the time was up")
    with part_file(target) as (file, part):
        transfer = _Transfer(url, file, size, read_timeout)
        before = bar.n
        while not transfer.done.wait(_POLL):
            bar.update(before + transfer.received - bar.n)
            if read_timeout.last > start:
                start, share = read_timeout.last, READ_TIMEOUT / mirrors_left
            if time.monotonic() - start > share:
                raise _Failure(f"silent for {share:.1f} s after {transfer.received} of {size} bytes")
        if transfer.write_error is not None:
            raise transfer.write_error
        if transfer.error is not None:
            raise _Failure(_reason(transfer.error))
        found = sha256_of(part)
        if found != sha256:
            raise _Failure(f"{transfer.received} of {size} bytes with SHA-256 {found}, not {sha256}")
        # Do not check for existence first: another process may create the file at any moment.
        with suppress(FileNotFoundError):
            if sha256_of(target) == sha256:
                return
            print(f"Replacing {target}, which is not MNIST's original", file=stderr)
        put_in_place(file, part, target)
        # Time spent on the disk does not count.
        read_timeout.reset()


def download(folder):
    """Download MNIST's four IDX files.

    Parameters
    ----------
    folder : pathlib.Path
        Created if missing. Files with the right SHA-256 are kept; other files of these names are replaced
        once the download is complete. Several processes may download into one folder at once.

    Raises
    ------
    DownloadError
        If no mirror delivers one of the files.
    OSError
        If ``folder`` cannot be written or is full.
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
    read_timeout = _ReadTimeout()
    print(f"Downloading MNIST into {folder}", file=stderr)
    # disable=None hides the bar unless stderr is a terminal.
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False, file=stderr) as bar:
        done = 0
        for target in targets:
            failures = []
            for n_tried, mirror in enumerate(mirrors):
                try:
                    _fetch(mirror + target.name, target, read_timeout, len(mirrors) - n_tried, bar)
                except _Failure as failure:
                    failures.append(f"{mirror}{target.name}: {failure}")
                else:
                    mirrors.sort(key=lambda other: other != mirror)  # noqa: B023 - called immediately
                    done += EXPECTED[target.name][0]
                    break
                finally:
                    bar.update(done - bar.n)
            else:
                raise DownloadError("\n".join(failures))
