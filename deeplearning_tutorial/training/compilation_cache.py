"""The cache of compiled code is only a cache: if it is damaged, full or out of reach, Numba compiles again.

Importing this module makes it so for the whole process. Subpackages that compile import it before
`deeplearning_tutorial.nnet`, with which PyTensor creates its folder.
"""

import atexit
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytensor
from numba.core import caching
from tqdm import tqdm

from deeplearning_tutorial.files.streams import stderr

_REMEDY = "PYTENSOR_FLAGS=base_compiledir=/another/folder chooses another one"
_warned = set()


def _warn(folder, what, error, consequence):
    # Only once, because a cache has hundreds of files.
    if (folder, what) not in _warned:
        _warned.add((folder, what))
        message = f"the compilation cache {folder} could not be {what} ({_reason(error)}): {consequence}"
        tqdm.write(f"WARNING: {message}", file=stderr)


def _reason(error):
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def _warn_uncached(folder, what, error):
    _warn(folder, what, error, f"the next start will compile again; {_REMEDY}")


def _tolerate(cache):
    """Make one of Numba's cache classes survive what it cannot load or save."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(self, signature, target_context):
        try:
            return load(self, signature, target_context)
        except Exception as error:  # what damaged files hold may raise anything
            _warn(self.cache_path, "read", error, "compiling the damaged part again")
            # Otherwise neither could be replaced. If this fails, saving fails as well, and warns.
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature, compiled):
        try:
            save(self, signature, compiled)
        except Warning:  # Numba's, of what cannot be cached; raised where warnings are errors
            raise
        except Exception as error:
            _warn_uncached(self.cache_path, "written", error)

    cache.load_overload, cache.save_overload = load_overload, save_overload


def _find_folder():
    """Let PyTensor create its folder, or use a temporary one in this process if it cannot."""
    wanted = pytensor.config.base_compiledir
    try:
        (wanted / "numba").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        try:
            temporary = tempfile.mkdtemp(prefix="compiled-")
        except OSError:
            raise OSError(
                f"the compilation cache {wanted} could not be created ({_reason(error)}), and there is no "
                f"temporary folder; make it writable, or make room; {_REMEDY}"
            ) from error
        _warn_uncached(wanted, "created", error)
        # By now PyTensor does not let it be changed.
        pytensor.config._config_var_dict["base_compiledir"].val = Path(temporary)
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)


_find_folder()
_tolerate(caching.Cache)
