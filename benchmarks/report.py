"""Results as a Markdown page and a plot."""

import os
import platform
import shlex
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.contenders import CHANNELS_LAST, JAX, MATRIX_PRODUCT, MATRIX_SIDE, OURS, PLAIN, PYTORCH
from benchmarks.layers import BATCH
from benchmarks.timing import fastest_pytorch, median_ratio

COLUMNS = (OURS, *PYTORCH, JAX)
NONE = "–"


@dataclass
class Results:
    """What was measured; the values are what `timing.measure`, `start_up` and `peak_memory` return."""

    dataset: str
    threads: int
    timed: dict = field(default_factory=dict)
    """By case: the workload, then seconds and skipped contenders."""
    threads_compared: tuple = ()
    start_up: tuple = ()
    memory: tuple = ()
    layers: dict = field(default_factory=dict)
    """By layer and what is computed of it: seconds and skipped contenders."""


def markdown(results, command):
    """Return the page."""
    sections = [
        f"# Benchmarks\n\nWritten by `{command}`.\n\n{_machine(results)}",
        _timed(results) if results.timed else "",
        _threads_compared(*results.threads_compared) if results.threads_compared else "",
        _start_up(*results.start_up) if results.start_up else "",
        _memory(*results.memory) if results.memory else "",
        _layers(results.layers) if results.layers else "",
        _skipped(results),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def plot(results, path):
    """Draw the time of every contender over that of PyTorch's fastest way, for the timed cases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for case, (_, seconds, _) in results.timed.items() if fastest_pytorch(seconds)]
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.4 * len(cases)), layout="constrained")
    for name, marker in zip(COLUMNS, "DosvX", strict=True):
        points = [
            (median_ratio(seconds[key], seconds[fastest_pytorch(seconds)]), row)
            for row, case in enumerate(cases)
            for seconds in [results.timed[case][1]]
            for key in seconds
            if key[0] == name
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=name, markersize=9 if name == OURS else 6)
    axes.axvline(1, color="grey", linewidth=1, zorder=0)
    axes.set(xscale="log", yticks=range(len(cases)), yticklabels=cases)
    axes.set_xlabel(f"time over that of PyTorch's fastest way (less is faster; threads: {results.threads})")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=len(COLUMNS), fontsize="small")
    figure.savefig(path, dpi=120)


def quoted(arguments):
    """Return the arguments as ``make bench`` takes them."""
    return [f'ARGS="{shlex.join(arguments)}"'] if arguments else []


def _table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(results):
    libraries = ", ".join(
        f"{label} {_version(name)}"
        for label, name in (
            ("deeplearning_tutorial", "deeplearning_tutorial"),
            ("PyTensor", "pytensor"),
            ("Numba", "numba"),
            ("NumPy", "numpy"),
            ("PyTorch", "torch"),
            ("JAX", "jax"),
        )
    )
    return "\n".join(
        [
            f"- Machine: {_processor()}, {_cores()} cores, {platform.system()} {platform.machine()}",
            f"- Versions: Python {platform.python_version()}, {libraries}",
            f"- Threads: {results.threads} for every contender, where a table does not say otherwise",
            f"- Data: {results.dataset}, in memory before the first timed call",
        ]
    )


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _timed(results):
    header = ["case", *COLUMNS, "ratio", "arithmetic", "PyTorch's", "matrix product, GFLOP/s"]
    rows = [_timed_row(case, *measured[:2]) for case, measured in results.timed.items()]
    return f"""## Training steps and evaluation

Milliseconds per training step, or per evaluation of the 10,000 test images: medians over rounds in which
every contender had its turn. *Ratio* is the time of {OURS} over that of PyTorch's fastest way, the
median of the ratios round by round. *Arithmetic* is the dense arithmetic of the matrix products and
convolutions per second, over that of NumPy's product of two matrices of side {MATRIX_SIDE} in the same rounds
and data type; then the same for PyTorch's fastest way. It can exceed 1 where what is zero is not multiplied.

{_table(header, rows)}"""


def _timed_row(case, workload, seconds):
    by_name = {name: runs for (name, _threads), runs in seconds.items()}
    product_gflop = 2 * MATRIX_SIDE**3 / 1e9
    product = by_name[MATRIX_PRODUCT]
    peer_key = fastest_pytorch(seconds)
    peer = seconds[peer_key] if peer_key else None

    def arithmetic(runs):
        return f"{median_ratio(product, runs) * workload.gflop() / product_gflop:.2f}"

    return [
        case,
        *(_milliseconds(by_name[name]) if name in by_name else NONE for name in COLUMNS),
        f"**{median_ratio(by_name[OURS], peer):.2f}**" if peer else NONE,
        arithmetic(by_name[OURS]),
        arithmetic(peer) if peer else NONE,
        f"{product_gflop / median(product):.0f}",
    ]


def _milliseconds(runs):
    return f"{median(runs) * 1e3:.3g}" if median(runs) < 1 else f"{median(runs) * 1e3:.0f}"


def _threads_compared(seconds, _skipped):
    rows = [
        [
            name,
            *(_milliseconds(seconds[name, n]) for n in (1, 2)),
            f"{median_ratio(seconds[name, 1], seconds[name, 2]):.2f}",
        ]
        for name in COLUMNS
        if (name, 1) in seconds and (name, 2) in seconds
    ]
    return f"""## One thread and two

LeNet's training step, batch 500. Speed-up: the median of the ratios round by round.

{_table(["contender", "1 thread, ms", "2 threads, ms", "speed-up"], rows)}"""


def _start_up(cold, warm, _skipped):
    rows = [[name, f"{cold[name]:.1f}", f"{median(runs):.1f}"] for name, runs in warm.items()]
    return f"""## Start-up

Seconds from the start of the process to the end of LeNet's first training step, the reading of the data
included. By then {OURS} has built the functions that validate and test, too; its peers have not.
Cold: one start with the caches of PyTensor, Numba and torch.compile empty. Warm: the median of the starts
after it.

{_table(["contender", "cold, s", "warm, s"], rows)}"""


def _memory(mebibytes, _skipped):
    rows = [[name, f"{peak:.0f}"] for name, peak in mebibytes.items()]
    return f"""## Memory

Largest resident set of a process that reads the data, trains LeNet for an epoch and evaluates it on the
validation and the test set.

{_table(["contender", "MiB"], rows)}"""


def _layers(layers):
    names = [OURS, PLAIN, CHANNELS_LAST]
    rows = []
    for (layer, what), (seconds, _) in layers.items():
        by_name = {name: values for (name, _threads), values in seconds.items()}
        peer = fastest_pytorch(seconds)
        ratio = "" if peer is None else f"**{median_ratio(by_name[OURS], seconds[peer]):.2f}**"
        times = [_milliseconds(by_name[name]) if name in by_name else NONE for name in names]
        rows.append([f"{layer}: {what}", *times, ratio])
    return f"""## Single layers

Milliseconds for a batch of {BATCH}: the output, or the gradient with respect to the filters or the input.

{_table(["layer", *names, "ratio"], rows)}"""


def _skipped(results):
    measured = [
        *results.timed.values(),
        results.threads_compared,
        results.start_up,
        results.memory,
        *results.layers.values(),
    ]
    reasons = {name: why for values in measured if values for name, why in values[-1].items()}
    return "\n".join(f"- Without {name}: {why}" for name, why in reasons.items())
