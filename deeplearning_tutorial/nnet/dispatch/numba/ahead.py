"""Compile the kernels of a graph side by side, in a second process.

LLVM compiles for one thread at a time. A rewrite that changes no node counts the kernels that a graph lacks,
and lets another process compile them from the last to the first, while this one begins with the first. Both
keep what they compile on disk, and neither compiles what the other one has begun.
"""

import ast
import atexit
import json
import os
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytensor
from numba.core import event
from pytensor.compile.mode import optdb
from pytensor.graph.rewriting.basic import GraphRewriter

from deeplearning_tutorial.nnet.dispatch.numba import machine_code
from deeplearning_tutorial.nnet.dispatch.numba.kernel import KERNELS

LACKING = "deeplearning_tutorial:lacking"
"""The kind of Numba's event before a graph's kernels are compiled; its ``data`` has their ``names``."""

# It takes a second or two until a new process compiles: for fewer, this one is faster.
_WORTH_A_PROCESS = 3


def sources_of(op, dtype):
    """Return what `machine_code.load` takes for the kernels of an Op, by name."""
    return KERNELS[type(op)](op).sources(dtype)


class CompileAhead(GraphRewriter):
    """Let a second process compile kernels of the graph, if it lacks several."""

    def apply(self, fgraph):
        ops = {
            (node.op, str(np.dtype(node.outputs[0].dtype))): None
            for node in fgraph.toposort()
            if type(node.op) in KERNELS
        }
        names = [
            name
            for name in dict.fromkeys(name for each in ops for name in sources_of(*each))
            if not machine_code.is_available(name)
        ]
        if names:
            event.broadcast(event.Event(LACKING, event.EventStatus.START, data={"names": names}))
        if len(names) >= _WORTH_A_PROCESS:
            start_process(ops)


def start_process(ops):
    """Start a process that compiles the kernels of pairs of Op and data type, from the last to the first.

    It ends by itself. That none can be started costs time, and nothing else.
    """
    folder = machine_code.folder()
    if folder is None or (os.cpu_count() or 1) < 2 or not sys.executable:
        return
    kinds = [
        [type(op).__module__, type(op).__name__, repr(op._props_dict()), dtype] for op, dtype in reversed(ops)
    ]
    flags = [os.environ.get("PYTENSOR_FLAGS"), f"base_compiledir={pytensor.config.base_compiledir}", "cxx="]
    environment = os.environ | {
        "PYTENSOR_FLAGS": ",".join(filter(None, flags)),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import compile_ops_on_stdin as run; run()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        atexit.register(_end, process, os.getpid())
        with process.stdin as stream:
            stream.write(json.dumps(kinds).encode())
    except OSError:
        pass


def _end(process, parent):
    # Not in a forked child, whose parent still needs it.
    if os.getpid() == parent:
        process.terminate()
        process.wait()


def compile_ops_on_stdin():
    """Compile the kernels of the Ops that `start_process` writes to another process's standard input."""
    sources = {}
    for module, name, properties, dtype in json.load(sys.stdin):
        op_class = getattr(import_module(module), name)
        op = op_class.__new__(op_class)
        op.__dict__.update(ast.literal_eval(properties))
        sources |= dict(reversed(sources_of(op, dtype).items()))
    for name, compile_it in sources.items():
        machine_code.load(name, compile_it, unless_busy=True)


# After all rewrites that bring Ops with kernels.
optdb.register("compile_ahead", CompileAhead(), "numba", position=120)
