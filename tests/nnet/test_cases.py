"""On every back end the values and derivatives of every case are the reference's, and the errors the same."""

import itertools
import os
import re

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet import cases
from nnet.cases import ADJOINTS, BY_HAND, CONVOLUTIONS, MISFITS, POOL_MODES, POOLINGS, RATIOS
from nnet.drawn_cases import drawn_convolutions, drawn_poolings
from pytensor.gradient import grad, pushforward

from deeplearning_tutorial.nnet import conv2d, conv2d_transpose, pool_2d

FLIPS = (True, False)
FLOATS = ("float32", "float64")
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
ALL_KERNELS = "DEEPLEARNING_TUTORIAL_ALL_KERNELS" in os.environ


def on(*modes):
    return pytest.mark.parametrize("mode", modes, indirect=True)


def in_turn(names, on_numba=None, sample=(), modes=("py", "NUMBA", "JAX", "PYTORCH")):
    """Run a test on each back end with one name after the other, on Numba with those in ``on_numba``.

    There those that are not in ``sample`` are a sweep.
    """
    parameters = [
        pytest.param(
            mode,
            index,
            name,
            id=f"{mode}-{name}",
            marks=[pytest.mark.sweep] if mode == "NUMBA" and name not in sample else [],
        )
        for mode in modes
        for index, name in enumerate(names)
        if mode != "NUMBA" or on_numba is None or name in on_numba or ALL_KERNELS
    ]
    return pytest.mark.parametrize("mode, index, name", parameters, indirect=["mode"])


# The C linker calls perform too. It is tested where PyTensor's C code needs no BLAS, without which it warns.
with_c = ("py", "cvm", "NUMBA", "JAX", "PYTORCH")


def way(options, index):
    """Return the (option, dtype, whether shapes are known) to test; the next case has others."""
    return options[index % len(options)], FLOATS[index // 2 % 2], index % 3 == 2


def ways(mode, options, index):
    """Return all of them for perform, where nothing need be compiled, else one."""
    if ALL_KERNELS or getattr(mode, "provided_linker", None) == "py":
        return itertools.product(options, FLOATS, (True, False))
    return [way(options, index)]


def drawn_arrays(case, shapes, dtype, density=1):
    """Draw the inputs, g, of whose elements a fraction is zero, and a direction for each input."""
    rng = np.random.default_rng([len(shapes), *itertools.chain(*shapes)])
    inputs = [rng.integers(-2, 3, s) if case.with_ties else rng.normal(size=s) for s in shapes]
    g = rng.normal(size=case.output_shape(*shapes))
    g[rng.random(g.shape) >= density] = 0
    return [array.astype(dtype) for array in (*inputs, g, *(rng.normal(size=shape) for shape in shapes))]


def with_nan(x):
    x, where = x.copy(), np.random.default_rng(x.size).random(x.shape)
    x[where < 0.09], x[where < 0.06], x[where < 0.03] = np.nan, np.inf, -np.inf
    return x


def compiled(case, mode, dtype, known, count):
    """Compile (inputs, g, directions) -> what a reference gives, or the first ``count`` of it.

    How the output changes is computed by two or three ways: as the gradient with respect to ``g``, by
    differentiating twice, and by the Ops' own forward mode where they have it.
    """
    n = len(case.shapes[0])
    shapes = [*case.shapes[0], case.output_shape(*case.shapes[0]), *case.shapes[0]]
    symbols = [pt.tensor(dtype=dtype, shape=s if known else (None,) * len(s)) for s in shapes]
    inputs, g, directions = symbols[:n], symbols[n], symbols[n + 1 :]
    y = case.build(*inputs)
    assert y.type.shape == shapes[n] or not known
    first = grad(None, inputs, known_grads={y: g})
    changes = dict(zip(first, directions, strict=True))
    *second, moved = grad(None, [*inputs, g], known_grads=changes, disconnected_inputs="ignore")
    pushed = [pushforward(y, inputs, directions, use_op_pushforward=direct) for direct in case.forward]
    outputs = [y, *first, moved, *second, *pushed][:count]
    return pytensor.function(symbols, outputs, mode=mode, on_unused_input="ignore")


def check(f, case, arrays, count=None):
    expected_results = list(
        itertools.islice(case.reference(*(array.astype("float64") for array in arrays)), count)
    )
    if count is None:
        moved = expected_results[len(arrays) // 2 + 1]
        expected_results += [moved] * len(case.forward)
    for position, (result, expected) in enumerate(zip(f(*arrays), expected_results, strict=True)):
        message = f"output {position} of {case.build}, shapes {[array.shape for array in arrays]}"
        result = np.asarray(result)
        assert (result.dtype, result.shape) == (arrays[0].dtype, expected.shape), message
        tolerance = TOLERANCE[result.dtype.name]
        largest = abs(expected).max(initial=1, where=np.isfinite(expected))
        np.testing.assert_allclose(result, expected, tolerance, tolerance * largest, err_msg=message)


def check_all(case, mode, dtype, known):
    # JAX must know the lengths of what PyTensor reshapes.
    known = known or mode == "JAX" and True not in case.forward
    # The Ops of the others are among the first, and Numba would compile each again.
    count = case.count_on_numba if mode == "NUMBA" else None
    f = compiled(case, mode, dtype, known, count)
    # JAX compiles for each shape.
    for shapes in case.shapes[: 1 if known else 4 if mode == "JAX" else None]:
        arrays = drawn_arrays(case, shapes, dtype)
        check(f, case, arrays, count)
        if case.with_nan:
            check(f, case, [with_nan(arrays[0]), *arrays[1:]], count)
    if mode == "NUMBA" and not known:
        # The kernels of the gradients choose another way where most of the output gradient is not zero.
        for shapes, density in itertools.product(case.kernel_shapes, (1, 0.75, 0.25, 0)):
            check(f, case, drawn_arrays(case, shapes, dtype, density), count)


@pytest.mark.every_width
@on("NUMBA")
@pytest.mark.parametrize("dtype", FLOATS)
def test_convolutions_kernels_take_any_numbers_of_channels_and_filters(mode, dtype):
    check_all(cases.convolution("groups", True), mode, dtype, known=False)


# The kernels of one with groups are tested above.
@in_turn(
    CONVOLUTIONS,
    on_numba=CONVOLUTIONS.keys() - {"groups"},
    sample=("half, dilation, groups", "full, dilation, strides", "everything"),
    modes=with_c,
)
def test_convolution(mode, index, name):
    for flip, dtype, known in ways(mode, FLIPS, index):
        check_all(cases.convolution(name, flip), mode, dtype, known)


@in_turn(ADJOINTS, on_numba=["one side, dilation"], sample=["one side, dilation"])
def test_locally_connected(mode, index, name):
    flip, dtype, known = way(FLIPS, index)
    check_all(cases.unshared(name, flip), mode, dtype, known)


@in_turn(ADJOINTS, on_numba=["full, strides"], sample=["full, strides"])
def test_transposed_convolution(mode, index, name):
    for flip, dtype, known in ways(mode, FLIPS, index):
        check_all(cases.transposed(name, flip), mode, dtype, known)


@in_turn(RATIOS, on_numba=[3])
def test_upsampling(mode, index, name):
    use_1D_kernel, dtype, known = way(FLIPS, index)
    check_all(cases.upsampled(name, use_1D_kernel), mode, dtype, known)


@in_turn(
    POOLINGS,
    sample=("rest dropped", "overlapping, rest pooled", "apart", "padding, overlapping"),
    modes=with_c,
)
def test_pooling(mode, index, name):
    for pool_mode, dtype, known in ways(mode, POOL_MODES, index):
        check_all(cases.pooling(name, pool_mode), mode, dtype, known)


# JAX takes none; test_jax.py has what it says. Of two modes Numba compiles the same as of the other two.
@pytest.mark.parametrize(
    "mode, pool_mode",
    [
        pytest.param(mode, pool_mode, marks=[pytest.mark.every_width] if mode == "NUMBA" else [])
        for mode in ("py", "NUMBA", "PYTORCH")
        for pool_mode in POOL_MODES
        if mode != "NUMBA" or ALL_KERNELS or pool_mode in ("max", "average_inc_pad")
    ],
    indirect=["mode"],
)
def test_pooling_with_symbolic_window_stride_and_padding(mode, pool_mode):
    dtype = "float32" if pool_mode == "average_inc_pad" else "float64"
    x, g, dx = (pt.tensor4(dtype=dtype) for _ in range(3))
    geometry = pt.lvector("ws"), pt.ivector("stride"), pt.lvector("pad")
    functions = {}
    for ignore_border in (True, False):
        ws, stride, pad = geometry
        y = pool_2d(x, ws, ignore_border, stride, pad, mode=pool_mode)
        [gx] = grad(None, [x], known_grads={y: g})
        outputs = [y, gx, pushforward(y, x, dx, use_op_pushforward=True), y.shape]
        functions[ignore_border] = pytensor.function([x, g, dx, *geometry], outputs, mode=mode)
    for name, (options, _) in POOLINGS.items():
        ws, case = options["ws"], cases.pooling(name, pool_mode)
        values = ws, options.get("stride", ws), options.get("pad", (0, 0))
        arrays = drawn_arrays(case, [(2, 3, 16, 11)], dtype)
        *results, shape = functions[options["ignore_border"]](*arrays, *values)
        check(lambda *_, results=results: results, case, arrays, 3)
        assert tuple(shape) == results[0].shape


@in_turn(
    BY_HAND,
    on_numba=BY_HAND.keys() - {"transposed", "upsampled"},
    sample=(
        "flipped",
        "every tied maximum receives the whole gradient",
        "averages divide by all of a window that hardly fits",
        "a NaN beside padding",
    ),
)
def test_case_worked_by_hand(mode, index, name):
    build, inputs, g, expected_results = BY_HAND[name]
    for _, dtype, known in ways(mode, [None], index):
        arrays = [np.array(values, dtype) for values in (*inputs, g)]
        shapes = [a.shape if known or mode == "JAX" else (None,) * a.ndim for a in arrays]
        *symbols, weights = (pt.tensor(dtype=dtype, shape=shape) for shape in shapes)
        y = build(*symbols)
        outputs = [y, *grad(None, symbols, known_grads={y: weights})]
        results = pytensor.function([*symbols, weights], outputs, mode=mode)(*arrays)
        for result, expected in zip(results, expected_results, strict=True):
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("misfit", MISFITS)
def test_shapes_that_do_not_fit_are_refused(mode, misfit):
    options, x_shape, w_shape, message = MISFITS[misfit]
    x, w, g = (pt.tensor4(dtype="float64") for _ in range(3))
    y = conv2d(x, w, **options)
    for output in [y] if mode == "NUMBA" else [y, *grad(None, [x, w], known_grads={y: g})]:
        f = pytensor.function([x, w, g], output, mode=mode, on_unused_input="ignore")
        with pytest.raises(ValueError, match=None if mode == "NUMBA" else message) as error:
            f(np.ones(x_shape), np.ones(w_shape), np.ones((2, 8, 1, 1)))
        # Numba formats no messages: the shapes are arguments of the error.
        assert mode != "NUMBA" or w_shape in error.value.args


def test_what_is_transposed_must_have_the_shape_of_the_convolution(mode):
    maps, w = pt.tensor4(dtype="float64"), pt.tensor4(dtype="float64")
    f = pytensor.function([maps, w], conv2d_transpose(maps, w, (1, None, 7, 7)), mode=mode)
    assert f(np.ones((1, 2, 5, 5)), np.ones((2, 3, 3, 3))).shape == (1, 3, 7, 7)
    for shape in cases.NO_TRANSPOSES:
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            f(np.ones(shape), np.ones((2, 3, 3, 3)))


# In JAX the lengths are known, and this is refused when the graph is built.
@on("py", "NUMBA", "PYTORCH")
def test_locally_connected_filters_that_do_not_fit_are_refused(mode):
    x, w = pt.tensor4(dtype="float64"), pt.tensor(dtype="float64", shape=(None,) * 4 + (3, 3))
    f = pytensor.function([x, w], conv2d(x, w, border_mode="half", unshared=True), mode=mode)
    for shape in cases.NO_UNSHARED:
        with pytest.raises(ValueError, match="unshared filters do not fit"):
            f(np.ones((2, 3, 6, 5)), np.ones(shape))


@on("py", pytest.param("NUMBA", marks=pytest.mark.sweep), "JAX", "PYTORCH")
@pytest.mark.parametrize("drawn", [drawn_convolutions, drawn_poolings])
def test_whatever_is_drawn_is_the_references_or_refused(mode, for_all_drawn, drawn):
    def check_drawn(case_known_and_error):
        case, known, error = case_known_and_error
        if not error:
            check_all(case, mode, "float64", known)
            return
        shapes = case.shapes[0]
        symbols = [pt.tensor(dtype="float64", shape=s if known else (None,) * len(s)) for s in shapes]
        with pytest.raises(error):
            pytensor.function(symbols, case.build(*symbols), mode=mode)(*map(np.ones, shapes))

    for_all_drawn(drawn(), check_drawn)
