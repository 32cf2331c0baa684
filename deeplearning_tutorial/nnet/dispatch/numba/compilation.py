"""Numba compiles a function once, not once more within each function that calls it.

Numba optimises every function and turns it into machine code by itself, and then again within each function
that calls it, directly or not. Only the outermost are called from outside: with those inside left as they are
LLVM takes less than half as long. Importing this module makes it so for the whole process, of all functions
that have no wrapper for Python, as those of PyTensor's Ops and Numba's own have none.
"""

import ctypes
import gc

import llvmlite.binding
from numba.core import codegen, event
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys

_RECURSION = ".numba.unresolved$"
_DYNAMIC = "numba.dynamic.globals"
_EXCEPTION = "__excinfo_unwrap_args"

# Numba 0.61 and its LLVM lack them.
_HAS_PASSES = hasattr(codegen.CPUCodegen, "_pass_builder")

# Of all functions, by name: machine code lives as long as the process, and points to them.
_environments = {}


class DeferredLibrary(codegen.JITCodeLibrary):
    """A library that is optimised and turned into machine code when a function in it is asked for.

    Until then it can be linked into others. Numba's own libraries do all of it when they are finalised.
    """

    _is_native = False

    def _optimize_final_module(self):
        # Numba's `finalize` calls this and the next one, after it has linked what the library calls.
        if self._is_native:
            super()._optimize_final_module()

    def _finalize_final_module(self):
        # A cached library may hold machine code.
        if getattr(self, "_compiled_object", None) is not None:
            self._is_native = True
        if self._is_native:
            super()._finalize_final_module()
            return
        self._finalized = True
        # Functions that call each other find one another as Numba has it.
        if self._has_global(_RECURSION):
            self._make_native()

    def _optimize_functions(self, ll_module):
        """Simplify each function; the passes that take longer run once, over the library as a whole."""
        if not _HAS_PASSES:
            return super()._optimize_functions(ll_module)
        ll_module.data_layout = self._codegen._data_layout
        builder = self._codegen._pass_builder()
        passes = llvmlite.binding.create_new_function_pass_manager()
        passes.add_sroa_pass()
        passes.add_simplify_cfg_pass()
        passes.add_dead_code_elimination_pass()
        for function in ll_module.functions:
            if not function.is_declaration:
                passes.run(function, builder)
        return None

    def keep_exceptions_apart(self, prefix):
        """Let no other code use the functions by which this library converts the arguments of exceptions.

        Numba names them by the types of the arguments, and they are shared with all code of the process; but
        they need what a kernel's file does not hold. They get names that begin with ``prefix``, because
        LLVM's loader also finds what is internal by its name.
        """
        self._ensure_finalized()
        functions = [each for each in self._final_module.functions if each.name.startswith(_EXCEPTION)]
        for function in functions:
            function.name = f"{prefix}.{function.name}"
            function.linkage = "internal"

    def optimise(self):
        """Optimise the library as a whole, unless that has been done."""
        self._ensure_finalized()
        self._make_native()

    def _has_global(self, prefix):
        return any(variable.name.startswith(prefix) for variable in self._final_module.global_variables)

    @global_compiler_lock
    def _make_native(self):
        if self._is_native:
            return
        self._is_native = True
        if self._has_global(_RECURSION):
            # Numba asks for this function while the engine is busy with this library.
            rtsys.library.get_pointer_to_function("nrt_unresolved_abort")
        self._optimize_final_module()
        self._final_module.verify()
        self._finalize_final_module()
        for variable in self._final_module.global_variables:
            if variable.name in _environments:
                self._codegen.set_env(variable.name, _environments[variable.name])

    def get_pointer_to_function(self, name):
        """Return the address of a function, or 0 if the library does not define it."""
        self._ensure_finalized()
        if not self._is_native:
            try:
                function = self._final_module.get_function(name)
            except NameError:
                return 0
            if function.is_declaration:
                return 0
            self._make_native()
        return super().get_pointer_to_function(name)

    @property
    def has_dynamic_globals(self):
        """Whether the code refers to objects of this process, so that it cannot be cached."""
        self._ensure_finalized()
        return self._has_global(_DYNAMIC)

    def get_llvm_str(self):
        """Return LLVM's code, optimised."""
        self.optimise()
        return super().get_llvm_str()

    def get_asm_str(self):
        """Return the assembly."""
        self.optimise()
        return super().get_asm_str()

    def serialize_using_object_code(self):
        """Return what a cache stores: machine code only if there is any."""
        self._ensure_finalized()
        if self._is_native:
            return super().serialize_using_object_code()
        return self.serialize_using_bitcode()


class DeferringCodegen(codegen.JITCPUCodegen):
    """Code generation for the processor at hand, with deferred libraries."""

    _library_class = DeferredLibrary

    def set_env(self, env_name, env):
        """Set the environment of a function, unless it has no machine code yet; keep it for that time."""
        _environments[env_name] = env
        if self._engine.is_symbol_defined(env_name):
            address = self._engine.get_global_value_address(env_name)
            if address:
                ctypes.c_void_p.from_address(address).value = id(env)


class _PausedCollector(event.Listener):
    """Pause Python's cyclic garbage collector while Numba compiles.

    Compiling makes millions of objects, most of which live until it ends; looking through them again and
    again takes a sixth of the time.
    """

    def __init__(self):
        self._depth = 0
        self._was_enabled = False

    def on_start(self, event):
        """Pause it when the outermost compilation starts."""
        if self._depth == 0:
            self._was_enabled = gc.isenabled()
            gc.disable()
        self._depth += 1

    def on_end(self, event):
        """Let it run again when that has ended."""
        self._depth -= 1
        if self._depth == 0 and self._was_enabled:
            gc.enable()


def _install():
    # The one that exists is kept, with its engine: code may have been compiled with it.
    from numba.core.registry import cpu_target

    cpu_target.target_context.codegen().__class__ = DeferringCodegen
    event.register("numba:compile", _PausedCollector())


_install()
