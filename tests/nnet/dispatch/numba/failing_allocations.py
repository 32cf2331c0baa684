"""Fail each allocation of every kernel in turn: test_memory.py runs it as processes.

    python failing_allocations.py                              # all
    python failing_allocations.py convolution float32          # one kind of kernels, for one data type
    python failing_allocations.py steps float32                # steps of training, with several updates each

Numba allocates through functions that its code finds by name. Here these names stand for functions that count
down to the allocation that fails. What is compiled or loaded later uses them.
"""

import ctypes
import sys

import llvmlite.binding as llvm
import numpy as np
import pytensor
import pytensor.tensor as pt
from numba.core.registry import cpu_target
from numba.core.runtime import _nrt_python, rtsys
from pytensor.compile.mode import Mode
from pytensor.link.numba.linker import NumbaLinker

from deeplearning_tutorial.nnet import conv, conv2d, pool, softmax
from deeplearning_tutorial.nnet.fused import conv_pool, matrix_product
from deeplearning_tutorial.nnet.fused.column_sums import ColumnSums
from deeplearning_tutorial.nnet.fused.linear_log_likelihood import LinearLogLikelihood
from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood, LogLikelihoodGrad
from deeplearning_tutorial.nnet.fused.rows import RowArgmax, RowSoftmax
from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares
from deeplearning_tutorial.nnet.fused.tanh import VectorTanh
from deeplearning_tutorial.nnet.pool import pool_2d

# The arguments of each are integers: bytes, and the alignment.
ALLOCATORS = {"Allocate": "i64", "MemInfo_alloc": "i64", "MemInfo_alloc_safe": "i64"} | dict.fromkeys(
    ("MemInfo_alloc_aligned", "MemInfo_alloc_safe_aligned"), "i64, i32"
)
MANY = 1 << 40


def install():
    """Replace the allocators; return their countdown, whose value at 0 is the allocation that fails."""
    # Numba names its own allocators once.
    rtsys.initialize(cpu_target.target_context)
    _nrt_python.memsys_enable_stats()
    countdown = ctypes.c_int64(MANY)
    address = f"inttoptr (i64 {ctypes.addressof(countdown)} to i64*)"
    code = []
    for name, arguments in ALLOCATORS.items():
        kinds = arguments.split(", ")
        named = ", ".join(f"{kind} %{i}" for i, kind in enumerate(kinds))
        code.append(
            f"""
            define i8* @failing_{name}({named}) {{
              %left = atomicrmw sub i64* {address}, i64 1 seq_cst
              %fails = icmp eq i64 %left, 0
              br i1 %fails, label %none, label %some
            none:
              ret i8* null
            some:
              %found = call i8* inttoptr (i64 {_nrt_python.c_helpers[name]} to i8* ({arguments})*)({named})
              ret i8* %found
            }}""".replace("%0", "%a").replace("%1", "%b")
        )
    module = llvm.parse_assembly("\n".join(code))
    target = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    for name in ALLOCATORS:
        llvm.add_symbol(f"NRT_{name}", engine.get_function_address(f"failing_{name}"))
    countdown.engine = engine
    return countdown


def plain(dtype):
    """Arrays in float32 or float64 of given shapes, with the same numbers in each process."""
    rng = np.random.default_rng(7)
    return lambda *shape: rng.normal(size=shape).astype(dtype)


def convolution(border_mode=((0, 0), (0, 0)), subsample=(1, 1), dilation=(1, 1), groups=1):
    return conv.Conv2d(border_mode, subsample, True, dilation, groups)


def gradients_of(op, input, filters, sparse=False, order=np.ascontiguousarray):
    """A convolution's case and those of its gradients."""
    shape = conv.conv2d_output_shape(op, input.shape, filters.shape)
    gradient = plain(input.dtype)(*shape)
    if sparse:
        gradient[gradient < 1] = 0
    gradient = order(gradient)
    return {
        "": (op, order(input), filters),
        " filters": (op._like(conv.Conv2dGradFilters), order(input), filters, gradient),
        " input": (op._like(conv.Conv2dGradInput), order(input), filters, gradient),
    }


def convolution_cases(of):
    geometries = {
        "conv": (convolution(), of(5, 3, 9, 8), of(6, 3, 3, 2)),
        "conv of one channel": (convolution(), of(5, 1, 9, 8), of(2, 1, 3, 2)),
        "conv depthwise": (convolution(((1, 1), (1, 1)), groups=4), of(3, 4, 7, 6), of(8, 1, 3, 3)),
        "conv of one pixel": (convolution(), of(3, 8, 7, 6), of(5, 8, 1, 1)),
        "conv strided": (convolution(((1, 2), (0, 1)), (2, 1), (1, 2), 2), of(3, 4, 9, 9), of(6, 2, 3, 3)),
    }
    for name, (op, input, filters) in geometries.items():
        for part, case in gradients_of(op, input, filters).items():
            yield name + part, case
    op, input, filters = geometries["conv"]
    for part, case in gradients_of(op, input, filters, True, np.asfortranarray).items():
        yield "conv in any order, sparse," + part, case


def pooling_cases(of):
    shape = (3, 2, 9, 8)
    for name, geometry in {
        "pool": ((2, 2), (2, 2), (0, 0), True),
        "pool with overlap": ((3, 2), (2, 1), (1, 1), True),
        "pool far apart": ((2, 2), (3, 3), (0, 0), False),
    }.items():
        ws, stride, pad, ignore_border = geometry
        lengths = [
            pool.pool_output_length(n, w, s, p, ignore_border)
            for n, w, s, p in zip(shape[2:], ws, stride, pad, strict=True)
        ]
        x, gradient, cotangent = of(*shape), of(*shape[:2], *lengths), of(*shape)
        for mode in ("max", "average_exc_pad"):
            op = pool.Pool(mode, ignore_border, ws, stride, pad)
            yield f"{name}, {mode}", (op, np.asfortranarray(x))
        largest = performed(pool.Pool("max", ignore_border, ws, stride, pad), x)[0]
        max_gradient = pool.MaxPoolGrad(ignore_border, ws, stride, pad)
        yield f"{name}, max gradient", (max_gradient, x, largest, gradient)
        yield f"{name}, max second derivative", (
            pool.MaxPoolGradGrad(ignore_border, ws, stride, pad), x, largest, cotangent
        )  # fmt: skip
        average = pool.AveragePoolGrad("average_exc_pad", ignore_border, ws, stride, pad)
        yield f"{name}, average gradient", (average, x, gradient)


def fused_cases(of):
    for name, channels, size, ws, bias, tanh in (
        ("conv_pool", 2, 3, (2, 2), True, True),
        ("conv_pool of other windows", 2, 3, (3, 2), False, False),
        ("conv_pool by Winograd", 16, 5, (2, 2), True, True),
    ):
        input, filters = of(5, channels, size + 7, size + 8), of(6, channels, size, size)
        op = conv_pool.ConvMaxPool(True, ws, bias, tanh)
        arguments = (input, filters, *([of(6)] if bias else []))
        output, mask = performed(op, *arguments)
        gradient = of(*output.shape)
        output = [output] if tanh else []
        yield name, (op, *arguments)
        for part, op_class in (
            (" filters", conv_pool.ConvMaxPoolGradFilters), (" input", conv_pool.ConvMaxPoolGradInput)
        ):  # fmt: skip
            yield name + part, (op_class(True, ws, tanh), input, filters, mask, gradient, *output)


def matrix_cases(of):
    labels = np.array([1, -1, 0, 2, 1] * 60, "int32")
    x = of(300, 60)
    rate, decay = np.full((1, 1), 0.125, x.dtype), np.full((1, 1), 0.25, x.dtype)
    weights, below, gradient = of(130, 70), of(130, 90), of(90, 70)
    yield "product", (matrix_product.MatrixProduct(), below, gradient)
    yield "product in other orders", (matrix_product.MatrixProduct(), below.T, np.asfortranarray(of(130, 70)))
    yield "product of few columns", (matrix_product.MatrixProduct(), x, np.asfortranarray(of(60, 10)))
    yield "product of many rows", (matrix_product.MatrixProduct(), np.asfortranarray(x), of(60, 10))
    yield "stack of products", (matrix_product.BatchedMatrixProduct(), of(3, 20, 7), of(3, 7, 9))
    for inplace in (True, False):
        yield f"update, in place: {inplace}", (
            matrix_product.WeightUpdate(inplace), weights, below, gradient, rate, decay
        )  # fmt: skip
    yield "update without squares", (
        matrix_product.WeightUpdate(True, squares=False), weights, below, gradient, rate, decay
    )  # fmt: skip
    yield "update in other orders", (
        matrix_product.WeightUpdate(True), weights, np.asfortranarray(below), np.asfortranarray(gradient),
        rate, decay,
    )  # fmt: skip
    yield "column sums", (ColumnSums(), x)
    yield "column sums in another order", (ColumnSums(), np.asfortranarray(x))
    yield "sum of squares", (SumOfSquares(), np.asfortranarray(of(200, 190)))
    yield "tanh", (VectorTanh(), np.asfortranarray(of(100, 90)))
    yield "softmax", (RowSoftmax(), of(600, 10))
    yield "argmax", (RowArgmax(), of(600, 10))
    yield "log-likelihood", (LogLikelihood(), of(300, 3), labels)
    softmax = performed(RowSoftmax(), of(300, 3))[0]
    yield "log-likelihood's gradient", (LogLikelihoodGrad(), softmax, labels, of(300))
    yield "logistic regression", (
        LinearLogLikelihood(), np.asfortranarray(x), of(60, 3), of(3), labels, of(300)
    )  # fmt: skip


def performed(op, *arrays):
    storage = [[None] for _ in range(op.make_node(*map(pt.as_tensor_variable, arrays)).nout)]
    op.perform(op.make_node(*map(pt.as_tensor_variable, arrays)), arrays, storage)
    return [value for [value] in storage]


KINDS = {
    "convolution": convolution_cases, "pooling": pooling_cases, "fused": fused_cases, "matrix": matrix_cases
}  # fmt: skip


def cases(kinds=KINDS, dtypes=("float32", "float64")):
    for kind in kinds:
        for dtype in dtypes:
            for name, case in KINDS[kind](plain(dtype)):
                yield f"{name} ({dtype})", case


def compiled(op, arrays):
    inputs = [pt.tensor(dtype=array.dtype, shape=(None,) * array.ndim) for array in arrays]
    outputs = op.make_node(*inputs).outputs
    # Nothing may be rewritten, and what an Op overwrites is the caller's array itself.
    inputs = [pytensor.In(variable, borrow=True, mutable=True) for variable in inputs]
    return pytensor.function(inputs, outputs, mode=Mode(NumbaLinker(), None), accept_inplace=True)


def copied(arrays):
    return [array.copy(order="K") for array in arrays]


def same(found, expected):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, expected, strict=True))


def fail_each(countdown, name, op, *arrays):
    """Fail each allocation in turn; return their number."""
    function = compiled(op, arrays)
    expected = function(*copied(arrays))
    close = performed(op, *copied(arrays))
    for found, reference in zip(expected, close, strict=True):
        np.testing.assert_allclose(found, reference, rtol=2e-4, atol=2e-4)
    countdown.value = MANY
    function(*copied(arrays))
    allocations = MANY - countdown.value
    for failing in range(allocations):
        given = copied(arrays)
        before = rtsys.get_allocation_stats()
        countdown.value = failing
        try:
            found = function(*given)
        except MemoryError:
            assert same(given, arrays), f"{name}: allocation {failing} left its arguments changed"
            after = rtsys.get_allocation_stats()
            lost = after.alloc - before.alloc - (after.free - before.free)
            # PyTensor's function, through which the exception passes, never lets go of its arguments.
            assert lost <= len(arrays), f"{name}: allocation {failing} left {lost} others taken"
        else:
            # Other ways need no memory: one thread instead of several, plain loops instead of tiles.
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=f"{name}, {failing}")
        finally:
            countdown.value = MANY
        assert same(function(*copied(arrays)), expected), f"{name}: wrong after allocation {failing} failed"
    return allocations


def training_steps(dtype):
    """Functions that update several weights, with these and the functions' arguments."""
    of = plain(dtype)
    y = pt.ivector("y")
    labels = np.array([1, 0, 2, 9] * 5, "int32")

    def step(x, layers):
        params = [pytensor.shared(0.1 * of(*shape), shape=shape) for shape in layers]
        *filters, W, c, V, d = params
        a = x
        if filters:
            a = pool_2d(conv2d(x, filters[0]), (2, 2), ignore_border=True)
            a = pt.tanh(a + filters[1][None, :, None, None]).flatten(2)
        p = softmax(pt.tanh(a @ W + c) @ V + d)
        cost = -pt.mean(pt.log(p)[pt.arange(y.shape[0]), y])
        rate = np.array(0.1, dtype)
        updates = [(param, param - rate * pt.grad(cost, param)) for param in params]
        return pytensor.function([x, y], cost, updates=updates), params

    images = pt.tensor4("x", dtype=dtype)
    lenet = step(images, [(5, 1, 5, 5), (5,), (720, 64), (64,), (64, 10), (10,)])
    yield f"LeNet's step ({dtype})", *lenet, (of(20, 1, 28, 28), labels)
    vectors = pt.tensor("x", dtype=dtype, shape=(None, 200))
    mlp = step(vectors, [(200, 64), (64,), (64, 10), (10,)])
    ops = {type(node.op) for node in mlp[0].maker.fgraph.apply_nodes}
    assert matrix_product.WeightUpdate in ops
    yield f"MLP's step ({dtype})", *mlp, (of(20, 200), labels)


def fail_each_of_step(countdown, name, function, params, arguments):
    """Fail each allocation of a step in turn: it has updated all weights, or none; return their number."""
    before = [param.get_value() for param in params]
    countdown.value = MANY
    cost = function(*arguments)
    allocations = MANY - countdown.value
    after = [param.get_value() for param in params]
    for failing in range(allocations):
        for param, value in zip(params, before, strict=True):
            param.set_value(value)
        countdown.value = failing
        try:
            found, expected = function(*arguments), after
        except MemoryError:
            found, expected = cost, before
        finally:
            countdown.value = MANY
        np.testing.assert_allclose(found, cost, rtol=2e-5)
        for param, value in zip(params, expected, strict=True):
            np.testing.assert_allclose(
                param.get_value(), value, rtol=0, atol=0 if expected is before else 1e-6,
                err_msg=f"{name}: allocation {failing}",
            )  # fmt: skip
    return allocations


if __name__ == "__main__":
    countdown = install()
    kind, dtype = sys.argv[1:] or (None, None)
    dtypes = [dtype] if kind else ["float32", "float64"]
    counts = []
    for name, (op, *arrays) in cases([kind] if kind in KINDS else [] if kind else KINDS, dtypes):
        counts.append(fail_each(countdown, name, op, *arrays))
        assert counts[-1] > 0, name
        print(f"{counts[-1]:4} {name}", flush=True)
    steps = [step for dtype in dtypes for step in training_steps(dtype)] if kind in (None, "steps") else []
    for name, *step in steps:
        counts.append(fail_each_of_step(countdown, name, *step))
        print(f"{counts[-1]:4} {name}", flush=True)
    print(f"{sum(counts)} allocations of {len(counts)} kernels")
