"""Start-up and memory of LeNet, in child processes that do what a user's first run does.

The package's child runs `evaluate_lenet5` itself. Peers load the same files with the same reader, build the
same network and, for the memory, train an epoch and evaluate the validation and test set. A start is cold
where the folder for all that PyTensor, Numba and torch.compile keep between runs is empty, warm in the same
folder afterwards.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.contenders import JAX, OURS, PYTORCH, network, thread_environment
from benchmarks.workload import Workload

FIRST_MINIBATCH, EPOCH = "first minibatch", "epoch"
STARTERS = (OURS, *PYTORCH, JAX)
TRAINERS = (OURS, *PYTORCH)
_ANSWER = "answer:"


def start_up(dataset, threads, warm_runs):
    """Measure from the start of the process to the end of the first training step.

    Returns
    -------
    cold : dict of str to float
        Seconds.
    warm : dict of str to list of float
        Seconds, one for each run.
    skipped : dict of str to str
        Why a peer does not take part.
    """
    cold, warm, skipped = {}, {name: [] for name in STARTERS}, {}
    with tempfile.TemporaryDirectory() as caches:
        for _ in range(1 + warm_runs):
            for name in STARTERS:
                if name in skipped:
                    continue
                try:
                    _, seconds = _ask_child(FIRST_MINIBATCH, name, dataset, threads, caches)
                except RuntimeError as error:
                    _skip(name, error, skipped)
                    continue
                if name in cold:
                    warm[name].append(seconds)
                else:
                    cold[name] = seconds
    return cold, {name: runs for name, runs in warm.items() if runs}, skipped


def peak_memory(dataset, threads):
    """Measure the largest resident set of an epoch's run; return MiB by name, and who was skipped why."""
    mebibytes, skipped = {}, {}
    for name in TRAINERS:
        try:
            answer, _ = _ask_child(EPOCH, name, dataset, threads)
            mebibytes[name] = float(answer)
        except RuntimeError as error:
            _skip(name, error, skipped)
    return mebibytes, skipped


def _skip(name, error, skipped):
    if name == OURS:
        raise error
    skipped[name] = str(error)
    print(f"    without {name}: {error}", file=sys.stderr)


def _ask_child(task, name, dataset, threads, caches=None):
    """Return what the child answers and the seconds from its start to the answer."""
    environment = os.environ | thread_environment(threads)
    if caches is not None:
        flags = filter(None, (environment.get("PYTENSOR_FLAGS"), f"base_compiledir={caches}"))
        environment["PYTENSOR_FLAGS"] = ",".join(flags)
        environment |= {"NUMBA_CACHE_DIR": caches, "TORCHINDUCTOR_CACHE_DIR": caches}
    command = [sys.executable, "-m", "benchmarks.startup", task, name, str(dataset)]
    folder = Path(__file__).resolve().parents[1]
    # A pipe that nobody reads would block a child that has much to complain of.
    with tempfile.TemporaryFile("w+") as errors:
        start = perf_counter()
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child:
            for line in child.stdout:
                if line.startswith(_ANSWER):
                    return line.removeprefix(_ANSWER), perf_counter() - start
        errors.seek(0)
        complaints = errors.read().strip().splitlines()
    raise RuntimeError(complaints[-1] if complaints else f"{name} ended without an answer")


def _first_minibatch_of_ours(dataset):
    from deeplearning_tutorial import convolutional_mlp

    def train_one(train_model, *arguments, **options):
        train_model(0)
        _answer()
        raise SystemExit

    convolutional_mlp.train_with_patience = train_one
    convolutional_mlp.evaluate_lenet5(dataset=dataset)


def _epoch_of_ours(dataset):
    from deeplearning_tutorial.convolutional_mlp import evaluate_lenet5

    evaluate_lenet5(dataset=dataset, n_epochs=1)


def _first_minibatch(name, dataset):
    from deeplearning_tutorial.datasets import formats

    train, _, _ = formats.read_splits(Path(dataset))
    float(network(name, Workload()).training(*train)(0))
    _answer()


def _epoch(name, dataset):
    from deeplearning_tutorial.datasets import formats

    train, valid, test = formats.read_splits(Path(dataset))
    trained = network(name, Workload())
    step, validate, examine = trained.training(*train), trained.evaluation(*valid), trained.evaluation(*test)
    for index in range(len(train[0]) // trained.workload.batch_size):
        float(step(index))
    float(validate())
    float(examine())


def _answer(value=""):
    print(f"{_ANSWER}{value}", flush=True)


def _peak_mebibytes():
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _child(task, name, dataset):
    if name == OURS:
        # As the scripts do without flags of the user's.
        import pytensor

        pytensor.config.floatX = "float32"
    if task == FIRST_MINIBATCH:
        _first_minibatch_of_ours(dataset) if name == OURS else _first_minibatch(name, dataset)
    else:
        _epoch_of_ours(dataset) if name == OURS else _epoch(name, dataset)
        _answer(_peak_mebibytes())


if __name__ == "__main__":
    _child(*sys.argv[1:])
