"""Time the tutorial's networks beside PyTorch and JAX.

    make bench                                            # all cases, into docs/benchmarks.md and .png
    make bench ARGS="--quick"                             # all cases with few runs, for a first look
    make bench ARGS="lenet-step mlp-step --threads 1"     # some cases
    make bench ARGS="lenet-step --batch-size 100"         # a case with another size

Tables go to stdout. Only a run of all cases, or one with --output, writes files. How it is measured stands
in `timing` and `startup`; needs the ``bench`` extra.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks import alexnet, data, layers, report, startup, timing
from benchmarks.contenders import MATRIX_PRODUCT, OURS, PYTORCH, contenders_of
from benchmarks.workload import Workload

TIMED = {
    "lenet-step": Workload(),
    "lenet-evaluation": Workload(task="evaluation"),
    "mlp-step": Workload("mlp", batch_size=20),
    "logistic-step": Workload("logistic", batch_size=600),
    "lenet-batch-20": Workload(batch_size=20),
    "lenet-batch-100": Workload(batch_size=100),
    "lenet-batch-2000": Workload(batch_size=2000),
    "lenet-nkerns-6-16": Workload(nkerns=(6, 16)),
    "lenet-nkerns-64-128": Workload(nkerns=(64, 128)),
    "lenet-filters-3": Workload(filter_size=3),
    "lenet-filters-7": Workload(filter_size=7),
    "lenet-float64": Workload(floatX="float64"),
    "alexnet-step": alexnet.AlexNetStep(),
}
THREADS, START_UP, MEMORY, LAYERS = "lenet-threads", "start-up", "memory", "layers"
CASES = (*TIMED, THREADS, START_UP, MEMORY, LAYERS)


def parse():
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="case", help=f"one of {', '.join(CASES)} (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="for every contender (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few runs: to see that it works, not to quote")
    parser.add_argument("--output", type=Path, help="folder for the Markdown and the plot")
    sizes = parser.add_argument_group("sizes", "instead of those of the cases that are named")
    sizes.add_argument("--batch-size", type=int, default=argparse.SUPPRESS)
    sizes.add_argument("--nkerns", type=int, nargs=2, default=argparse.SUPPRESS)
    sizes.add_argument("--filter-size", type=int, default=argparse.SUPPRESS)
    sizes.add_argument("--floatX", choices=["float32", "float64"], default=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    cases, threads, quick, output = (arguments.pop(name) for name in ("cases", "threads", "quick", "output"))
    for case in cases:
        if case not in CASES:
            parser.error(f"there is no case {case!r}; choose from {', '.join(CASES)}")
    fixed = [case for case in cases if case not in TIMED]
    if arguments and (fixed or not cases):
        parser.error(f"sizes go with named cases that are timed, not with {fixed[0] if fixed else 'all'}")
    for case in cases:
        for name in arguments:
            if not hasattr(TIMED[case], name):
                parser.error(f"{case} takes no --{name.replace('_', '-')}")
    if not cases and not quick and output is None:
        output = Path(__file__).resolve().parents[1] / "docs"
    return cases or CASES, threads, quick, output, arguments


def measure(cases, threads, quick, sizes, folder):
    """Measure the cases one by one; return their results for `report`."""
    effort = timing.QUICK if quick else timing.THOROUGH
    # This process stays small: on Linux a child's peak memory counts that of its parent at the start.
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        dataset = elsewhere.submit(data.prepare, folder).result()
    results = report.Results(dataset.name if dataset.is_file() else "MNIST", threads)
    for case in cases:
        print(f"... {case}", file=sys.stderr, flush=True)
        if case in TIMED:
            workload = replace(TIMED[case], **sizes)
            keys = [(name, threads) for name in (*contenders_of(workload), MATRIX_PRODUCT)]
            label = " ".join([case, *(f"{name}={value}" for name, value in sizes.items())])
            results.timed[label] = workload, *timing.measure(keys, workload, folder, effort)
        elif case == THREADS:
            keys = [(name, n) for name in (OURS, *PYTORCH) for n in (1, 2)]
            results.threads_compared = timing.measure(keys, Workload(), folder, effort)
        elif case == LAYERS:
            keys = [(name, threads) for name in layers.CONTENDERS]
            for name, layer in layers.LAYERS.items():
                for single in layer.passes():
                    results.layers[name, single.what] = timing.measure(keys, single, folder, effort)
        elif case == START_UP:
            results.start_up = startup.start_up(dataset, threads, warm_runs=1 if quick else 3)
        else:
            results.memory = startup.peak_memory(dataset, threads)
    return results


def main():
    cases, threads, quick, output, sizes = parse()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(cases, threads, quick, sizes, folder)
    text = report.markdown(results, " ".join(["make bench", *report.quoted(sys.argv[1:])]))
    print(text)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmarks.md").write_text(text, encoding="utf-8")
        if results.timed:
            report.plot(results, output / "benchmarks.png")


if __name__ == "__main__":
    main()
