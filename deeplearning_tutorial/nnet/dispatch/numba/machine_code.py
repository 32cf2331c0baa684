"""The machine code of kernels: compiled once for a processor, kept on disk, and found by its name.

A kernel is an object file in the folder ``kernels`` of PyTensor's compilation cache. The file's name follows
from the kernel's, which has its data type and the version of its sources, from the processor, and from the
versions of all that compiles it. A file that is damaged is compiled again; where none can be written, nothing
is kept.
"""

import hashlib
import logging
import os
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import filelock
import llvmlite
import llvmlite.binding
import numba
import pytensor
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from deeplearning_tutorial.nnet.dispatch.numba.compilation import DeferredLibrary

COMPILING = "deeplearning_tutorial:compiling"
"""The kind of Numba's event that a kernel's compilation starts and ends; its ``data`` has the ``name``."""

# Longer than any kernel takes. Who holds the lock may have been stopped.
_LOCK_SECONDS = 120

_loaded = {}
_logger = logging.getLogger(__name__)


def folder():
    """Return the folder of kernels, or None if nothing is to be kept."""
    return Path(pytensor.config.base_compiledir) / "kernels" if pytensor.config.numba__cache else None


def file_of(name):
    """Return the file of a kernel, or None if nothing is to be kept."""
    if folder() is None:
        return None
    compilers = numba.__version__, llvmlite.__version__, sys.implementation.cache_tag
    key = repr((name, compilers, cpu_target.target_context.codegen().magic_tuple()))
    short = name.rsplit(".", 1)[-1].split("-")[0]
    return folder() / f"{short}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.o"


def is_available(name):
    """Tell whether a kernel need not be compiled."""
    if name in _loaded:
        return True
    file = file_of(name)
    return file is not None and file.exists()


def load(name, compile_kernel, unless_busy=False):
    """Make a kernel known under its name to all code that Numba compiles.

    Parameters
    ----------
    name : str
    compile_kernel : callable
        Returns Numba's library of the compiled kernel and the name of the function in it. It is called unless
        the kernel is on disk. While another process compiles the kernel, this one waits for it.
    unless_busy : bool
        Do nothing if another process compiles the kernel.
    """
    if name not in _loaded:
        file = file_of(name)
        with _lock(file, 0 if unless_busy else _LOCK_SECONDS) as is_ours:
            if unless_busy and not is_ours:
                return
            function = _read(file)
            if function is None:
                with event.trigger_event(COMPILING, data={"name": name}):
                    function = _compile(compile_kernel, file)
        _loaded[name] = function
        address, _ = function
        llvmlite.binding.add_symbol(name, address)


@contextmanager
def _lock(file, seconds):
    """Hold the lock of a kernel's file, if it can be had within some seconds; yield whether it is held."""
    lock = None
    if file is not None:
        with suppress(OSError, filelock.Timeout):
            file.parent.mkdir(parents=True, exist_ok=True)
            waiting = filelock.FileLock(f"{file}.lock", timeout=seconds)
            waiting.acquire()
            lock = waiting
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


@global_compiler_lock
def _compile(compile_kernel, file):
    library, symbol = compile_kernel()
    if isinstance(library, DeferredLibrary):
        library.keep_exceptions_apart(symbol)
    address = library.get_pointer_to_function(symbol)
    if file is not None:
        try:
            _write(file, symbol, library._get_compiled_object())
        except OSError as error:
            _warn_once(file.parent, error.strerror)
    return address, library


@cache
def _warn_once(folder, reason):
    _logger.warning(
        "the compilation cache %s could not be written (%s): the next start will compile again; "
        "PYTENSOR_FLAGS=base_compiledir=/another/folder chooses another one",
        folder,
        reason,
    )


def _write(file, symbol, code):
    content = symbol.encode() + b"\n" + code
    handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with open(handle, "wb") as stream:
            stream.write(hashlib.sha256(content).digest() + content)
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


@global_compiler_lock
def _read(file):
    """Load a kernel's file; return its address and what must stay alive, or None if it is not a whole one."""
    try:
        stored = file.read_bytes() if file is not None else b""
    except OSError:
        return None
    digest, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    symbol, _, code = content.partition(b"\n")
    # Starts Numba's memory management, if nothing has been compiled yet.
    cpu_target.target_context.refresh()
    engine = cpu_target.target_context.codegen()._engine._ee
    module = llvmlite.binding.ObjectFileRef.from_data(code)
    engine.add_object_file(module)
    engine.finalize_object()
    return engine.get_function_address(symbol.decode()), module
