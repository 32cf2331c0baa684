"""Contenders take turns, each in a process of its own.

A turn is a few consecutive calls. Between turns all rest: the threads of OpenMP, OpenBLAS and XLA spin after
their last work, and would take a core from whoever comes next. OpenBLAS's do so for 2**28 cycles; with rests
of 50 ms a perceptron's step, next after the matrix product, took a quarter longer than it does alone. The
first call of a turn of several is not timed: it wakes the contender's threads and fills its caches.

One process for all would be simpler, but flatters the package: what PyTorch frees makes glibc's malloc keep
memory that it otherwise returns, and the LeNet step, alone with 5000 page faults, had none and took a tenth
less time, while PyTorch's took the same. In processes of their own all keep their defaults, and what else the
machine does still hits all alike, because turns are short and ratios are taken within a round of turns.
"""

import os
import sys
from contextlib import contextmanager
from math import ceil
from multiprocessing import get_context
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

from benchmarks import alexnet, contenders, layers
from benchmarks.contenders import MATRIX_PRODUCT, MATRIX_SIDE, OURS, PYTORCH, thread_environment

REST_SECONDS = 0.2
MIN_ROUNDS = 5


class Effort(NamedTuple):
    """How long to measure: rounds are as many as the seconds of a case allow, within bounds."""

    turn_seconds: float
    case_seconds: float
    max_rounds: int


THOROUGH, QUICK = Effort(0.1, 16, 15), Effort(0.03, 0, 5)


class Worker:
    """A contender in its process; ``key`` is its name and its number of threads."""

    def __init__(self, key, workload, folder):
        self.key = key
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        name, threads = key
        with _environment(thread_environment(threads)):
            self._process = context.Process(target=_work, args=(theirs, name, workload, folder), daemon=True)
            self._process.start()
        theirs.close()

    def receive(self):
        """Return what the process answers; raise RuntimeError with its message if it failed."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = f"{self.key[0]} ended without an answer"
        if isinstance(answer, str):
            self.end()
            raise RuntimeError(answer)
        return answer

    def turn(self, calls):
        """Return the seconds per call, of a turn of so many calls."""
        sleep(REST_SECONDS)
        self._pipe.send(calls)
        return self.receive()

    def end(self):
        """Close the process."""
        self._pipe.close()
        self._process.join()


def measure(keys, workload, folder, effort):
    """Time contenders against each other.

    Parameters
    ----------
    keys : list of (str, int)
        Names of the contenders and their numbers of threads.
    workload : Workload
    folder : path
        Where `data.prepare` wrote the data.
    effort : Effort

    Returns
    -------
    seconds : dict of (str, int) to list of float
        Per call, one for each round.
    skipped : dict of str to str
        Why a peer does not take part.
    """
    workers = [Worker(key, workload, folder) for key in keys]
    try:
        results, skipped = {}, {}
        for worker in list(workers):
            try:
                results[worker.key] = worker.receive()
            except RuntimeError as error:
                if worker.key[0] == OURS:
                    raise
                skipped[worker.key[0]] = str(error)
                print(f"    without {worker.key[0]}: {error}", file=sys.stderr)
                workers.remove(worker)
        _check_agreement({key: result for key, result in results.items() if key[0] != MATRIX_PRODUCT})
        calls, round_seconds = {}, 0
        for worker in workers:
            seconds = worker.turn(max(1, ceil(effort.turn_seconds / worker.turn(1))))
            calls[worker.key] = max(1, ceil(effort.turn_seconds / seconds))
            round_seconds += REST_SECONDS + (calls[worker.key] + (calls[worker.key] > 1)) * seconds
        rounds = max(MIN_ROUNDS, min(effort.max_rounds, int(effort.case_seconds / round_seconds)))
        seconds = {worker.key: [] for worker in workers}
        for _ in range(rounds):
            for worker in workers:
                seconds[worker.key].append(worker.turn(calls[worker.key]))
    finally:
        for worker in workers:
            worker.end()
    return seconds, skipped


def median_ratio(numerators, denominators):
    """Median of the ratios round by round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def fastest_pytorch(seconds):
    """Return the key of PyTorch's way with the lowest median, or None where PyTorch does not take part."""
    ways = [key for key in seconds if key[0] in PYTORCH]
    return min(ways, key=lambda key: median(seconds[key]), default=None)


@contextmanager
def _environment(variables):
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_agreement(results):
    expected = next(result for key, result in results.items() if key[0] == OURS)
    for (name, _threads), result in results.items():
        if abs(result - expected) > 1e-4 * abs(expected):
            raise RuntimeError(f"{name} computes {result} where {OURS} computes {expected}")


def _work(pipe, name, workload, folder):
    try:
        if name == MATRIX_PRODUCT:
            call, left_out = _matrix_product(workload)
        elif isinstance(workload, layers.Layer):
            call, left_out = layers.task(name, workload), 0
        elif isinstance(workload, alexnet.AlexNetStep):
            call, left_out = alexnet.task(name, workload), 0
        else:
            call, left_out = _task(name, workload, folder)
        call(0)
        # The first cost is that of ten equal probabilities, whatever the layers below compute.
        pipe.send(float(call(1)) + left_out)
    except Exception as error:
        if name == OURS:
            raise
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    done = 2
    while True:
        try:
            calls = pipe.recv()
        except EOFError:
            return
        if calls > 1:
            float(call(done))
            done += 1
        start = perf_counter()
        for index in range(done, done + calls):
            result = call(index)
        # JAX returns before it has computed.
        float(result)
        pipe.send((perf_counter() - start) / calls)
        done += calls


def _task(name, workload, folder):
    from benchmarks import data

    network = contenders.network(name, workload)
    if workload.task == "evaluation":
        evaluate = network.evaluation(*data.load(folder, "test", workload.floatX))
        return lambda index: evaluate(), 0
    step = network.training(*data.load(folder, "train", workload.floatX))
    n_batches = data.SIZES["train"] // workload.batch_size
    return lambda index: step(index % n_batches), getattr(network, "left_out_of_cost", 0)


def _matrix_product(workload):
    import numpy as np

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, MATRIX_SIDE, MATRIX_SIDE)).astype(workload.floatX)
    out = np.empty_like(a)
    return lambda index: np.dot(a, b, out=out)[0, 0], 0
