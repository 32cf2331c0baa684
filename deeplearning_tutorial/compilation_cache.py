"""The cache of compiled code is only a cache: where it is damaged, full or out of reach, Numba compiles anew.

Importing this module sees to it, for the whole process. Modules that compile import it before
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

from deeplearning_tutorial.streams import stderr

_REMEDY = "PYTENSOR_FLAGS=base_compiledir=/another/folder chooses another one"
_told = set()


def _warn(folder, what, error, consequence):
    # Once: a cache has hundreds of files.
    if (folder, what) not in _told:
        _told.add((folder, what))
        message = f"the compilation cache {folder} could not be {what} ({_reason(error)}): {consequence}"
        tqdm.write(f"WARNING: {message}", file=stderr)


def _reason(error):
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def _warn_uncached(folder, what, error):
    _warn(folder, what, error, f"the next start will compile again; {_REMEDY}")


def _tolerate(cache):
    """Have a class of Numba's do without what it cannot load or save."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(self, signature, target_context):
        try:
            return load(self, signature, target_context)
        except Exception as error:  # what damaged files hold may raise anything
            _warn(self.cache_path, "read", error, "compiling what is damaged anew")
            # Else neither could be replaced. Where this fails saving fails as well, and tells.
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
    """Have PyTensor create its folder, or use a temporary one in this process if it cannot."""
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
        # PyTensor lets nobody change it any more.
        pytensor.config._config_var_dict["base_compiledir"].val = Path(temporary)
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)


_find_folder()
_tolerate(caching.Cache)
