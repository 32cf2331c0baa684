import gc
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import types
from numba.core import event
from numba.extending import overload
from pytensor.link.numba.dispatch.basic import numba_njit

from deeplearning_tutorial.nnet.dispatch.numba import compilation


def library_of(dispatcher):
    [compiled] = dispatcher.overloads.values()
    return compiled.library


def test_only_what_python_calls_becomes_machine_code():
    inner = numba_njit(lambda x: x * x + 1)
    outer = numba.njit(lambda x: inner(x) - inner(-x - 1))
    assert outer(3) == 10 - 17
    assert isinstance(library_of(inner), compilation.DeferredLibrary)
    assert library_of(outer)._is_native and not library_of(inner)._is_native
    # It can still be asked for.
    symbol = next(iter(inner.overloads.values())).fndesc.llvm_func_name
    assert library_of(inner).get_pointer_to_function(symbol) and library_of(inner)._is_native
    assert library_of(inner).get_pointer_to_function("no such function") == 0
    assert outer(3) == 10 - 17


def test_a_function_is_linked_before_and_after_it_became_machine_code():
    inner = numba.njit(lambda x: x + 0.5)
    assert numba.njit(lambda x: 2 * inner(x))(1.0) == 3
    assert inner(1.0) == 1.5
    assert numba.njit(lambda x: 4 * inner(x))(1.0) == 6


def test_assembly_is_that_of_optimised_code():
    inner = numba_njit(lambda x: x + x)
    numba.njit(lambda x: inner(x))(1.0)
    library = library_of(inner)
    assert "addsd" in library.get_asm_str() or "fadd" in library.get_asm_str()
    assert "alloca" not in library.get_llvm_str()


def test_functions_may_call_themselves_and_each_other():
    @numba.njit
    def factorial(n):
        return n * factorial(n - 1) if n > 1 else 1

    @numba_njit
    def is_even(n):
        return True if n == 0 else is_odd(n - 1)

    @numba_njit
    def is_odd(n):
        return False if n == 0 else is_even(n - 1)

    assert factorial(10) == 3628800
    assert numba.njit(lambda n: is_even(n))(10) and not numba.njit(lambda n: is_even(n))(7)


def test_an_inner_function_prints_and_raises(capfd):
    @numba_njit
    def inner(x):
        print("seen", x)
        if x > 2:
            raise ValueError("too large", x)
        return x

    outer = numba.njit(lambda x: inner(x) + 1)
    assert outer(2) == 3
    with pytest.raises(ValueError, match=r"too large.*3"):
        outer(3)
    assert capfd.readouterr().out == "seen 2\nseen 3\n"


def test_parallel_loops_callbacks_and_vectorised_functions_work():
    @numba.njit(parallel=True)
    def squares(x):
        out = np.empty_like(x)
        for i in numba.prange(len(x)):
            out[i] = x[i] * x[i]
        return out

    @numba.cfunc(types.float64(types.float64))
    def doubled(x):
        return 2 * x

    @numba.vectorize([types.float64(types.float64)])
    def halved(x):
        return x / 2

    np.testing.assert_array_equal(squares(np.arange(9.0)), np.arange(9.0) ** 2)
    assert doubled.ctypes(2.5) == 5
    np.testing.assert_array_equal(halved(np.arange(3.0)), [0, 0.5, 1])


CACHED = """
import gc, sys, numba
import deeplearning_tutorial.nnet
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit

def cached(source, names=None, **options):
    names = {"__name__": __name__} | (names or {})
    function = compile_numba_function_src(source, "f", names, cache_key=source)
    return numba_njit(function, cache=True, **options)

inner = cached("def f(x):\\n    if x < 0: raise ValueError('negative', (x, 2 * x), x)\\n    return 3 * x\\n")
middle = cached("def f(x):\\n    return inner(x) + 1\\n", {"inner": inner})
outer = cached("def f(x):\\n    return middle(x) * KEY\\n".replace("KEY", sys.argv[1]), {"middle": middle},
    final_function=True)
print(outer(2))
try:
    outer(-1)
except ValueError as error:
    print(*error.args)
print(sum(outer.stats.cache_hits.values()), sum(middle.stats.cache_hits.values()))

# Numba converts the arguments of an exception by the first function for values of these kinds.
del inner, middle, outer, cached
gc.collect()

@numba_njit
def fail(x):
    if x < 0: raise ValueError("another", (x, 3 * x), x)
    return x

another = numba.njit(lambda x: fail(x) + 1)

try:
    another(-5)
except ValueError as error:
    print(*error.args)
"""


def test_inner_functions_are_cached_without_machine_code(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTENSOR_FLAGS", f"base_compiledir={tmp_path},cxx=")

    def run(factor):
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", CACHED, factor], capture_output=True, text=True, timeout=120
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.split()

    assert run("10") == "70 negative (-1, -2) -1 0 0 another (-5, -15) -5".split()
    assert run("10") == "70 negative (-1, -2) -1 1 0 another (-5, -15) -5".split()
    # Another function takes the inner one from the cache.
    assert run("100") == "700 negative (-1, -2) -1 0 1 another (-5, -15) -5".split()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_pauses_while_numba_compiles(enabled):
    seen = []

    def probed(x):
        raise NotImplementedError

    @overload(probed)
    def _probed(x):
        seen.append(gc.isenabled())
        return lambda x: x

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert numba.njit(lambda x: probed(x))(1) == 1
        assert seen and not any(seen)
        assert gc.isenabled() is enabled
        with pytest.raises(numba.TypingError):
            numba.njit(lambda x: x.no_such_attribute)(1)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_nested_compilations_resume_the_collector_once():
    with event.trigger_event("numba:compile"), event.trigger_event("numba:compile"):
        assert not gc.isenabled()
    assert gc.isenabled()
