"""Fuzz the readers of data and models, guided by coverage.

::

    pip install atheris                          # Linux, CPython 3.11 to 3.13
    python -m fuzzing.run                        # each reader, 100,000 inputs
    python -m fuzzing.run pickle --runs 1000000 --corpus /tmp/pickles

An input for which a reader breaks its word ends the reader's run; libFuzzer names the file it is kept in.
"""

import argparse
import collections
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import atheris

# What is instrumented must be imported here, first of all.
with atheris.instrument_imports(include=["deeplearning_tutorial", "gzip", "pickle", "zipfile", "numpy.lib"]):
    import gzip  # noqa: F401
    import pickle  # noqa: F401
    import zipfile  # noqa: F401

    from fuzzing.readers import READERS

MAX_LENGTH = 12_000
MEMORY = 8 << 30


def fuzz(name, runs, corpus, seed, log):
    """Fuzz one reader in this process, which libFuzzer ends."""
    reader = READERS[name]
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    corpus.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(reader.seeds):
        (corpus / f"seed{i}").write_bytes(data)
    tokens = corpus.with_name(f"{name}.dict")
    spelled = ("".join(f"\\x{byte:02x}" for byte in token) for token in reader.tokens)
    tokens.write_text("".join(f'"{token}"\n' for token in spelled))
    console = open(os.dup(1), "w")
    with open(log, "w") as file:  # libFuzzer tells much
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    counts = collections.Counter()
    begin = time.monotonic()

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:

        def check(data):
            counts["taken" if reader.check(data, folder) else "refused"] += 1
            if counts.total() == runs:
                seconds = time.monotonic() - begin
                told = f"{name}: {runs} inputs, {counts['taken']} of them taken, {seconds:.0f} s, no finding"
                print(told, file=console, flush=True)

        options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_LENGTH}", f"-dict={tokens}"]
        options += ["-timeout=20", "-use_value_profile=1", f"-artifact_prefix={corpus}-"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], check, enable_python_coverage=True)
        atheris.Fuzz()


def main():
    """Fuzz the readers one after another, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing.run", description=__doc__.partition("\n")[0])
    names = list(READERS)
    parser.add_argument("readers", nargs="*", default=names, metavar="reader", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="folder that is kept (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        failed = []
        for name in args.readers:
            corpus = (args.corpus or Path(temporary)) / name
            log = Path(temporary) / f"{name}.log"
            arguments = name, args.runs, corpus, args.seed, log
            process = multiprocessing.get_context("spawn").Process(target=fuzz, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                failed.append(name)
                print(log.read_text(errors="replace")[-4000:])
        print(f"findings: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
