"""Compare what LeNet reaches with each pooling: the table of poolings.md.

    python -m docs.poolings run                  # train what poolings.json lacks, and write the table
    python -m docs.poolings run l2 stochastic    # of these only
    python -m docs.poolings                      # write the table from poolings.json

A run keeps its checkpoint in ``build/poolings``, or ``--folder``; stopped with Ctrl-C, the same command
continues it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "poolings.md", ROOT / "docs" / "poolings.json"
N_EPOCHS = 10
# What is written in the table, and the script's arguments.
RUNS = {
    "max": ("max, the tutorial's", ""),
    "max-relu": ("max, relu", "--activation relu"),
    "overlapping": ("max, overlapping", "--pool-sizes 3 3 --pool-strides 2 2"),
    "average": ("average", "--pooling average"),
    "sum": ("sum", "--pooling sum"),
    "l2": ("L2", "--pooling l2"),
    "stochastic": ("stochastic, relu", "--pooling stochastic --activation relu"),
    "deformation": (
        "deformation-constrained, overlapping",
        "--pooling deformation --pool-sizes 3 3 --pool-strides 2 2",
    ),
    "contrast": ("local contrast normalisation, max", "--normalisation contrast"),
    "response": ("local response normalisation, max", "--normalisation response"),
}
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"


def train(name, folder):
    """Train one row to its end and keep its figures; return whether it got there."""
    _, arguments = RUNS[name]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deeplearning_tutorial.lenet_poolings", "--n-epochs", str(N_EPOCHS)]
    command += [*arguments.split(), "--checkpoint", folder / f"{name}.npz", "--resume", "--json"]
    print(f"{name}: {' '.join(map(str, command[1:]))}", file=sys.stderr)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return False
    run = json.loads(done.stdout)
    figures = {key: run[key] for key in ("epochs", "best_validation_error", "test_error", "minibatches")}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | {name: figures}, indent=1) + "\n")
    return True


def table(results):
    """Return the table's lines of Markdown."""
    lines = ["| pooling | validation error | test error | arguments |", "|---|---|---|---|"]
    for name, (title, arguments) in RUNS.items():
        errors = ["not yet run", ""]
        if name in results:
            errors = [f"{100 * results[name][key]:.2f} %" for key in ("best_validation_error", "test_error")]
        lines.append(f"| {title} | {' | '.join(errors)} | {f'`{arguments}`' if arguments else 'none'} |")
    return "\n".join(lines) + "\n"


def page(text, results):
    """Return the page's text with the table of these results."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main():
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=["run"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "poolings")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - RUNS.keys():
        parser.error(f"there is no {', '.join(unknown)}; use some of {', '.join(RUNS)}")
    for name in (arguments.names or RUNS) if arguments.action else ():
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if name not in known and not train(name, arguments.folder):
            sys.exit(f"{name} did not reach its end; the same command continues it")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
