"""Who takes part: the package, its peers, and a plain matrix product to hold their arithmetic against."""

from importlib import import_module

OURS = "deeplearning_tutorial"
PLAIN, CHANNELS_LAST, COMPILED = "PyTorch", "PyTorch channels_last", "PyTorch torch.compile"
PYTORCH = (PLAIN, CHANNELS_LAST, COMPILED)
JAX = "JAX"
MATRIX_PRODUCT = "matrix product"
MATRIX_SIDE = 1000

_MODULES = {
    OURS: ("with_pytensor", ()),
    PLAIN: ("with_pytorch", ("plain",)),
    CHANNELS_LAST: ("with_pytorch", ("channels_last",)),
    COMPILED: ("with_pytorch", ("compile",)),
    JAX: ("with_jax", ()),
}


def contenders_of(workload):
    """Names of those that take part in a workload; only convolutions have channels to put last."""
    if workload.network == "alexnet":
        # torch.compile's cost after a step is not the one that the others agree on.
        return (OURS, PLAIN, CHANNELS_LAST)
    everyone = (OURS, *PYTORCH, JAX)
    return everyone if workload.network == "lenet" else tuple(n for n in everyone if n != CHANNELS_LAST)


def network(name, workload):
    """Return the network of ``workload`` in a contender's library."""
    module, arguments = _MODULES[name]
    return import_module(f"benchmarks.{module}").Network(workload, *arguments)


def thread_environment(threads):
    """Environment in which every contender's libraries use ``threads`` threads; read when they are loaded."""
    # The last is XLA's.
    libraries = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")
    return {variable: str(threads) for variable in libraries}
