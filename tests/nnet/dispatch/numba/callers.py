"""A layer with its gradients, saved or called by many at once: test_callers.py runs it as processes.

python callers.py save FILE fused|unfused ...
python callers.py call threads|fork|spawn ...
python callers.py function
"""

import multiprocessing
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import get_mode
from pytensor.gradient import grad

from deeplearning_tutorial.nnet import conv2d, pool_2d

RESULTS, GOT_RIGHT = ["output", "x", "w", "b"], "got the right results"
SEEDS = range(6)


def layer(mode):
    """Compile (x, w, b, g) -> output and gradients; test_conv_pool.py compiles the same."""
    x, w, g = (pt.tensor4(dtype="float32") for _ in range(3))
    b = pt.vector(dtype="float32")
    y = pt.tanh(pool_2d(conv2d(x, w), (3, 2), ignore_border=True) + b.dimshuffle("x", 0, "x", "x"))
    return pytensor.function([x, w, b, g], [y, *grad((y * g).sum(), [x, w, b])], mode=mode)


def arrays(seed):
    # More images than the kernels make blocks.
    shapes = (67, 3, 13, 10), (9, 3, 4, 3), (9,), (67, 9, 3, 4)
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=shape) / 4).astype("float32") for shape in shapes]


of_thread = threading.local()


def results(seed):
    if not hasattr(of_thread, "fused_layer"):
        of_thread.fused_layer = layer(get_mode("NUMBA"))
    return [result.tobytes() for result in of_thread.fused_layer(*arrays(seed))]


def save(file, *fusions):
    numba_mode = get_mode("NUMBA")
    modes = {"fused": numba_mode, "unfused": numba_mode.excluding("conv_pool_fusion")}
    saved = {
        f"{fusion} {name}": result
        for fusion in fusions
        for name, result in zip(RESULTS, layer(modes[fusion])(*arrays(0)), strict=True)
    }
    np.savez(file, **saved, threads=numba.get_num_threads(), processor=str(numba.config.CPU_NAME))


def call_at_once(callers):
    expected = [results(seed) for seed in SEEDS]
    seeds = [*SEEDS] * 20
    if callers == "threads":
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(results, seeds))
    else:
        with multiprocessing.get_context(callers).Pool(2) as pool:
            # A child that dies is replaced without a word, and its result never comes.
            found = pool.map_async(results, seeds).get(timeout=60)
    assert found == expected * 20
    assert [results(seed) for seed in SEEDS] == expected


def share_one_function():
    """Call one compiled function from four threads, each with arguments of its own."""
    # Python itself changes threads too rarely to do so between what PyTensor does for a call.
    sys.setswitchinterval(60)
    function = layer(get_mode("NUMBA"))
    given = [arrays(seed) for seed in SEEDS]
    expected = [[result.tobytes() for result in function(*each)] for each in given]

    def call(_):
        return [[result.tobytes() for result in function(*each)] for each in given]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, range(100)):
            assert found == expected
    print("function", GOT_RIGHT, flush=True)
    # Numba's own loops in several threads, too, let TBB wait for ever when the process ends.
    os._exit(0)


if __name__ == "__main__":
    command, *others = sys.argv[1:]
    if command == "save":
        save(*others)
    elif command == "function":
        share_one_function()
    else:
        for callers in others:
            call_at_once(callers)
            print(callers, GOT_RIGHT)
