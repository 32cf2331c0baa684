import inspect
import itertools
from functools import cache, partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import strategies as st
from pytensor.gradient import DisconnectedInputError, grad, pushforward, verify_grad
from scipy.signal import convolve2d, correlate2d

from deeplearning_tutorial import nnet
from deeplearning_tutorial.nnet import conv, conv2d
from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput, conv_output_length

RNG = np.random.default_rng(5)
INPUT_SHAPE = (2, 4, 7, 5)
FILTER_ROWS, FILTER_COLS = 3, 2

# The arguments, and what border_mode means for filters of 3 x 2.
CASES = {
    "plain": ({}, ((0, 0), (0, 0))),
    "strides": ({"subsample": (2, 3)}, ((0, 0), (0, 0))),
    "one padding": ({"border_mode": 2}, ((2, 2), (2, 2))),
    "padding per axis": ({"border_mode": (1, 2)}, ((1, 1), (2, 2))),
    "padding per side": ({"border_mode": ((0, 2), (3, 1))}, ((0, 2), (3, 1))),
    "half": ({"border_mode": "half"}, ((1, 1), (1, 1))),
    "full": ({"border_mode": "full"}, ((2, 2), (1, 1))),
    "dilation": ({"filter_dilation": (2, 3)}, ((0, 0), (0, 0))),
    "half, dilation": ({"border_mode": "half", "filter_dilation": (2, 3)}, ((2, 2), (2, 2))),
    "full, dilation": (
        {"border_mode": "full", "filter_dilation": (2, 3), "subsample": (3, 2)},
        ((4, 4), (3, 3)),
    ),
    "groups": ({"num_groups": 2}, ((0, 0), (0, 0))),
    "depthwise": ({"num_groups": 4, "border_mode": (0, 1)}, ((0, 0), (1, 1))),
    "everything": (
        {
            "border_mode": ((0, 2), (3, 1)),
            "subsample": (2, 3),
            "filter_dilation": (3, 2),
            "num_groups": 2,
        },
        ((0, 2), (3, 1)),
    ),
}

FEW_CASES = ("half, dilation", "depthwise", "everything")


def tensors(names, dtype="float64"):
    return [pt.tensor4(name, dtype=dtype) for name in names]


def filters_shape(options):
    return (8, INPUT_SHAPE[1] // options.get("num_groups", 1), FILTER_ROWS, FILTER_COLS)


def reference(x, w, pads, subsample=(1, 1), filter_dilation=(1, 1), num_groups=1, flip=True):
    """SciPy's convolution or correlation of each channel, summed over a group's channels."""
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    spans = [(n - 1) * d + 1 for n, d in zip(w.shape[2:], filter_dilation, strict=True)]
    dilated = np.zeros((*w.shape[:2], *spans))
    dilated[:, :, :: filter_dilation[0], :: filter_dilation[1]] = w
    apply = convolve2d if flip else correlate2d
    per_group = len(w) // num_groups
    maps = [
        [
            sum(
                apply(image[k // per_group * w.shape[1] + channel], dilated[k, channel], mode="valid")
                for channel in range(w.shape[1])
            )
            for k in range(len(w))
        ]
        for image in x
    ]
    return np.array(maps)[:, :, :: subsample[0], :: subsample[1]]


def reference_options(options):
    return {name: value for name, value in options.items() if name != "border_mode"}


def gradient_of_linear(function, shape, output_gradient):
    """Gradient of ``(output_gradient * function(x)).sum()`` for a linear function, element by element."""
    gradient = np.empty(shape)
    for index in np.ndindex(shape):
        unit = np.zeros(shape)
        unit[index] = 1
        gradient[index] = (output_gradient * function(unit)).sum()
    return gradient


def random(shape, dtype="float64"):
    return RNG.normal(size=shape).astype(dtype)


@cache
def plain_function(mode, flip, dtype):
    """Compile (x, w, g) -> output and gradients, of any lengths, once for all tests."""
    x, w, g = tensors("xwg", dtype)
    y = conv2d(x, w, filter_flip=flip)
    return pytensor.function([x, w, g], [y, *grad((y * g).sum(), [x, w])], mode=mode)


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


@pytest.mark.parametrize(
    "flip, dtype, output, input_gradient, filters_gradient",
    [
        (True, "float64", [[12, 23], [45, 56]], [[10, 1, 0], [0, 20, 2]], [[14, 11]]),
        (False, "float32", [[21, 32], [54, 65]], [[1, 10, 0], [0, 2, 20]], [[11, 14]]),
    ],
)
def test_a_case_worked_by_hand(mode, flip, dtype, output, input_gradient, filters_gradient):
    # With the flip an output is ten times its left pixel plus the right one; without it, the other way round.
    x, w, g = [[[[1, 2, 3], [4, 5, 6]]]], [[[[1, 10]]]], [[[[1, 0], [0, 2]]]]
    results = plain_function(mode, flip, dtype)(*(np.array(values, dtype) for values in (x, w, g)))
    for result, expected in zip(results, (output, input_gradient, filters_gradient), strict=True):
        np.testing.assert_array_equal(result[0, 0], expected)


@pytest.mark.parametrize("flip, dtype", [(True, "float64"), (False, "float32")])
def test_plain_values_and_gradients_are_scipys_for_any_lengths(mode, flip, dtype):
    f = plain_function(mode, flip, dtype)
    for x_shape, w_shape in (
        (INPUT_SHAPE, (8, 4, 3, 2)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((3, 1, 8, 9), (1, 1, 7, 5)),
        ((1, 3, 5, 7), (11, 3, 5, 7)),
        ((5, 7, 4, 13), (17, 7, 1, 6)),
        # More images than the kernels make blocks.
        ((67, 1, 3, 4), (2, 1, 2, 1)),
    ):
        x, w = random(x_shape, dtype), random(w_shape, dtype)
        g = random(reference(x, w, CASES["plain"][1]).shape, dtype)
        check_against_scipy(f(x, w, g), x, w, g, CASES["plain"][1], flip)


@pytest.mark.parametrize(
    "mode, flip, dtype, known",
    [
        ("py", True, "float64", False),
        ("py", True, "float32", True),
        ("py", False, "float64", True),
        ("py", False, "float32", False),
        ("NUMBA", False, "float32", True),
    ],
    indirect=["mode"],
)
def test_values_and_gradients_are_scipys(mode, every_case, flip, dtype, known):
    cases = CASES if every_case else FEW_CASES
    inputs, outputs, arrays = [], [], []
    for options, pads in (CASES[case] for case in cases):
        x, w = random(INPUT_SHAPE, dtype), random(filters_shape(options), dtype)
        g = random(reference(x, w, pads, **reference_options(options)).shape, dtype)
        symbols = [pt.tensor(dtype=dtype, shape=a.shape if known else (None,) * 4) for a in (x, w, g)]
        y = conv2d(*symbols[:2], filter_flip=flip, **options)
        assert y.type.shape == (g.shape if known else (None,) * 4)
        inputs += symbols
        outputs += [y, *grad((y * symbols[2]).sum(), symbols[:2])]
        arrays += [x, w, g]
    # One function for all: Numba takes seconds for each.
    results = pytensor.function(inputs, outputs, mode=mode)(*arrays)
    for i, (options, pads) in enumerate(CASES[case] for case in cases):
        of_case = slice(3 * i, 3 * i + 3)
        check_against_scipy(results[of_case], *arrays[of_case], pads, flip, **reference_options(options))


def check_against_scipy(results, x, w, g, pads, flip, **options):
    convolved = partial(reference, pads=pads, flip=flip, **options)
    expected_results = (
        convolved(x, w),
        # One image is enough to tell a wrong gradient.
        gradient_of_linear(lambda x: convolved(x, w), (1, *x.shape[1:]), g[:1]),
        gradient_of_linear(lambda w: convolved(x, w), w.shape, g),
    )
    tolerance = {"float64": 1e-10, "float32": 5e-5}[x.dtype.name]
    for name, result, expected in zip(("output", "x", "w"), results, expected_results, strict=True):
        assert result.dtype == x.dtype
        np.testing.assert_allclose(
            result[: len(expected)],
            expected,
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"{name} {x.shape} {w.shape} {options}",
        )


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("case", ["plain", "half", "everything"])
def test_first_and_second_gradients_agree_with_differences(mode, case):
    options, _ = CASES[case]
    x, w = random((1, 4, 6, 5)), random((2, *filters_shape(options)[1:]))

    def output(x, w):
        return conv2d(x, w, **options)

    for function in (
        output,
        lambda x, w: grad((output(x, w) ** 2).sum(), x),
        lambda x, w: grad((output(x, w) ** 2).sum(), w),
    ):
        verify_grad(function, [x, w], rng=np.random.default_rng(2), mode=mode)


@pytest.mark.parametrize("case", CASES)
def test_numba_has_kernels_for_all_derivatives(case):
    options, _ = CASES[case]
    x, w, v = tensors("xwv")
    y = conv2d(x, w, **options)
    first = grad((y**2).sum(), [x, w])
    second = grad(sum((g**2).sum() for g in first), [x, w])
    moved = pushforward(y, [x], [v], use_op_pushforward=True)
    # Without one, an error while the function is built.
    pytensor.function([x, w, v], [*second, moved], mode="NUMBA")


def test_arrays_in_any_memory_order_are_taken(mode):
    x, w = tensors("xw")
    y = conv2d(x.transpose(3, 2, 1, 0), w[:, :, ::-1], filter_flip=True)
    # The sum's gradient is one number, spread over the shape without being copied.
    f = pytensor.function([x, w], [y, *grad(y.sum(), [x, w])], mode=mode)
    x_value, w_value = random(INPUT_SHAPE[::-1]), random(filters_shape({}))
    moved, turned = x_value.transpose(3, 2, 1, 0), w_value[:, :, ::-1]
    output, input_gradient, filters_gradient = f(x_value, w_value)
    np.testing.assert_allclose(output, reference(moved, turned, CASES["plain"][1]), rtol=1e-10)
    ones = np.ones_like(output)
    np.testing.assert_allclose(
        input_gradient.transpose(3, 2, 1, 0)[:1],
        gradient_of_linear(
            lambda x: reference(x, turned, CASES["plain"][1]), (1, *INPUT_SHAPE[1:]), ones[:1]
        ),
        rtol=1e-10,
    )
    np.testing.assert_allclose(
        filters_gradient[:, :, ::-1],
        gradient_of_linear(lambda w: reference(moved, w, CASES["plain"][1]), turned.shape, ones),
        rtol=1e-10,
    )


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("case", ["plain", "everything"])
def test_forward_mode_is_the_product_rule(mode, case):
    options, pads = CASES[case]
    values = {"x": random(INPUT_SHAPE), "w": random(filters_shape(options))}
    tangents = {name: random(value.shape) for name, value in values.items()}
    symbols = dict(zip("xw", tensors("xw"), strict=True))
    y = conv2d(symbols["x"], symbols["w"], **options)
    combinations = list(itertools.product(("x", "w", "xw"), (True, False)))
    moved = [
        pushforward(
            y,
            [symbols[name] for name in wrt],
            [pt.constant(tangents[name]) for name in wrt],
            use_op_pushforward=direct,
        )
        for wrt, direct in combinations
    ]
    f = pytensor.function(list(symbols.values()), moved, mode=mode)
    for result, (wrt, direct) in zip(f(**values), combinations, strict=True):
        expected = sum(
            reference(**(values | {name: tangents[name]}), pads=pads, **reference_options(options))
            for name in wrt
        )
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10, err_msg=f"{wrt} {direct}")


@pytest.mark.parametrize(
    "op_class, shape_only, wrt", [(Conv2dGradFilters, 1, (0, 2)), (Conv2dGradInput, 0, (1, 2))]
)
def test_an_input_that_gives_only_its_shape_is_disconnected(op_class, shape_only, wrt):
    inputs = tensors("xwg")
    gradient = op_class(((0, 0), (0, 0)), (1, 1), True, (1, 1), 1)(*inputs)
    assert gradient.type == inputs[shape_only].type
    assert len(grad(gradient.sum(), [inputs[i] for i in wrt])) == 2
    with pytest.raises(DisconnectedInputError):
        grad(gradient.sum(), inputs[shape_only])


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("narrow", ["x", "w"])
def test_mixed_dtypes_upcast(mode, narrow):
    dtypes = {"x": "float64", "w": "float64"} | {narrow: "float32"}
    x, w = (pt.tensor4(name, dtype=dtype) for name, dtype in dtypes.items())
    x_value, w_value = random(INPUT_SHAPE, dtypes["x"]), random(filters_shape({}), dtypes["w"])
    y = conv2d(x, w)
    y_value, *gradients = pytensor.function([x, w], [y, *grad(y.sum(), [x, w])], mode=mode)(x_value, w_value)
    assert y.dtype == y_value.dtype == "float64"
    np.testing.assert_allclose(y_value, reference(x_value, w_value, CASES["plain"][1]), rtol=1e-10)
    # The sum of all outputs is linear in each argument: its value is the product with that one's gradient.
    for value, gradient in zip((x_value, w_value), gradients, strict=True):
        np.testing.assert_allclose((value * gradient).sum(), y_value.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["input", "filters"])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "complex64"])
def test_other_dtypes_are_refused_and_told_to_cast(name, dtype):
    arguments = {"input": pt.tensor4(dtype="float32"), "filters": pt.tensor4(dtype="float32")}
    with pytest.raises(TypeError, match=f"{name} has dtype {dtype}.*cast {name}"):
        conv2d(**arguments | {name: pt.tensor4(dtype=dtype)})


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_arrays_are_taken_as_they_are(mode):
    x, w = random(INPUT_SHAPE), random(filters_shape({}))
    y = conv2d(x, w)
    assert y.type.shape == (2, 8, 5, 4)
    np.testing.assert_allclose(
        pytensor.function([], y, mode=mode)(), reference(x, w, CASES["plain"][1])
    )


@pytest.mark.parametrize(
    "input_shape, filters_shape, output_shape",
    [
        ((0, 4, 7, 5), (8, 4, 3, 2), (0, 8, 5, 4)),
        ((2, 0, 7, 5), (8, 0, 3, 2), (2, 8, 5, 4)),
        ((2, 4, 7, 5), (0, 4, 3, 2), (2, 0, 5, 4)),
    ],
    ids=["batch", "channels", "filters"],
)
def test_a_count_of_zero_is_legal_and_all_gradients_are_zero(
    mode, input_shape, filters_shape, output_shape
):
    f = plain_function(mode, True, "float64")
    output, *gradients = f(np.ones(input_shape), np.ones(filters_shape), np.ones(output_shape))
    assert output.shape == output_shape and not output.any()
    for gradient, shape in zip(gradients, (input_shape, filters_shape), strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(shape))


def test_output_length_counts_the_positions_of_the_filter():
    for length, k, before, after, stride, dilation in itertools.product(
        range(1, 9), (1, 2, 3), (0, 2), (0, 1), (1, 2, 3), (1, 2)
    ):
        span = 1 + (k - 1) * dilation
        if span > before + length + after:
            continue
        starts = range(0, before + length + after - span + 1, stride)
        assert conv_output_length(length, k, (before, after), stride, dilation) == len(starts)


@pytest.mark.parametrize("lengths", [(None, 3), (7, None)])
def test_output_length_is_unknown_where_a_length_is(lengths):
    assert conv_output_length(*lengths, (0, 0), 1, 1) is None


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("case", ["strides", "half, dilation", "full, dilation", "everything"])
def test_shapes_are_known_without_convolving(mode, case):
    options, pads = CASES[case]
    x_value, w_value = np.ones(INPUT_SHAPE), np.ones(filters_shape(options))
    x, w = tensors("xw")
    y = conv2d(x, w, **options)
    gradients = grad((y**2).sum(), [x, w])
    f = pytensor.function([x, w], [v.shape for v in (y, *gradients)], mode=mode)
    assert not {Conv2d, Conv2dGradFilters, Conv2dGradInput} & set(ops_of(f))
    expected = reference(x_value, w_value, pads, **reference_options(options))
    assert [tuple(s) for s in f(x_value, w_value)] == [expected.shape, x_value.shape, w_value.shape]


@pytest.mark.parametrize(
    "border_mode, shape, prop",
    [
        ("valid", (None,) * 4, ((0, 0), (0, 0))),
        (1, (None,) * 4, ((1, 1), (1, 1))),
        ((np.int64(1), 2), (None,) * 4, ((1, 1), (2, 2))),
        ("half", (None,) * 4, "half"),
        ("half", (None, None, 3, None), "half"),
        ("half", (None, None, 4, 5), ((2, 2), (2, 2))),
        ("full", (None, None, 4, 5), ((3, 3), (4, 4))),
    ],
)
def test_border_mode_becomes_pairs_where_the_filter_size_is_known(border_mode, shape, prop):
    x = pt.tensor4(dtype="float32")
    for w, hint in (
        (pt.tensor4(dtype="float32"), shape),
        (pt.tensor(dtype="float32", shape=shape), None),
    ):
        assert conv2d(x, w, filter_shape=hint, border_mode=border_mode).owner.op.border_mode == prop


def test_a_partly_known_filter_size_still_gives_the_known_length():
    x = pt.tensor(dtype="float32", shape=(None, None, 7, 5))
    w = pt.tensor(dtype="float32", shape=(None, None, 3, None))
    assert conv2d(x, w, border_mode="half").type.shape == (None, None, 7, None)


def test_shape_hints_become_static_shapes():
    x, w = tensors("xw", "float32")
    y = conv2d(x, w, (2, None, 7, np.int64(5)), [8, 4, 3, None])
    assert y.type.shape == (2, 8, 5, None)
    assert conv2d(x, w, (2, None, 7, 5), (8, 4, 3, 2)).type.shape == (2, 8, 5, 4)


def test_a_hint_that_the_type_already_proves_costs_nothing():
    x = pt.tensor(dtype="float32", shape=INPUT_SHAPE)
    w = pt.tensor(dtype="float32", shape=filters_shape({}))
    y = conv2d(x, w, INPUT_SHAPE, (8, 4, None, 2))
    assert y.owner.inputs == [x, w]


def test_a_hint_that_contradicts_the_type_is_refused_naming_both():
    x, w = pt.tensor(dtype="float32", shape=(None, 4, 7, 5)), pt.tensor4(dtype="float32")
    with pytest.raises(ValueError, match=r"input_shape=\(2, 3, 7, 5\).*\(None, 4, 7, 5\)"):
        conv2d(x, w, (2, 3, 7, 5))


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("name, given", [("input_shape", (2, 4, 7, 6)), ("filter_shape", (8, None, 3, 3))])
def test_a_hint_that_the_data_contradict_is_an_error_naming_both(mode, name, given):
    x, w = tensors("xw")
    y = conv2d(x, w, **{name: given})
    arrays = np.ones(INPUT_SHAPE), np.ones(filters_shape({}))
    for result in (y, grad((y**2).sum(), w)):
        with pytest.raises(ValueError) as error:
            pytensor.function([x, w], result, mode=mode)(*arrays)
        assert f"{name}={given}" in str(error.value)
        assert str(arrays[name == "filter_shape"].shape) in str(error.value)


X4, W4 = tensors("xw", "float32")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"input": pt.tensor3("x")}, TypeError, "input has 3 dimensions; conv2d takes 4"),
        ({"filters": pt.matrix("w")}, TypeError, "filters has 2 dimensions; conv2d takes 4"),
        ({"border_mode": "same"}, ValueError, "border_mode='same'"),
        ({"border_mode": [1, 1]}, ValueError, r"border_mode=\[1, 1\]"),
        ({"border_mode": ([1, 1], (1, 1))}, ValueError, "border_mode="),
        ({"border_mode": np.array([1, 1])}, ValueError, "border_mode="),
        ({"border_mode": -1}, ValueError, "border_mode=-1"),
        ({"border_mode": (1, -1)}, ValueError, r"border_mode=\(1, -1\)"),
        ({"border_mode": ((0, 1), (1, -1))}, ValueError, "border_mode="),
        ({"border_mode": (1, 1, 1)}, ValueError, "border_mode="),
        ({"border_mode": 1.0}, ValueError, "border_mode=1.0"),
        ({"border_mode": True}, ValueError, "border_mode=True"),
        ({"border_mode": None}, ValueError, "border_mode=None"),
        ({"subsample": (1,)}, ValueError, r"subsample=\(1,\)"),
        ({"subsample": (1, 0)}, ValueError, r"subsample=\(1, 0\)"),
        ({"subsample": 2}, ValueError, "subsample=2"),
        ({"filter_dilation": (1, 1, 1)}, ValueError, r"filter_dilation=\(1, 1, 1\)"),
        ({"filter_dilation": (1.5, 1)}, ValueError, "filter_dilation="),
        ({"num_groups": 0}, ValueError, "num_groups=0"),
        ({"num_groups": 1.0}, ValueError, "num_groups=1.0"),
        ({"input_shape": (1, 2, 3)}, ValueError, r"input_shape=\(1, 2, 3\)"),
        ({"input_shape": (1, 2, 3, 4.0)}, ValueError, "input_shape=.*4.0"),
        ({"filter_shape": (1, 2, "3", 4)}, ValueError, "filter_shape=.*'3'"),
        ({"filter_shape": (1, 2, -3, 4)}, ValueError, "filter_shape=.*-3"),
        ({"filter_shape": 4}, ValueError, "filter_shape=4"),
        (
            {"input_shape": INPUT_SHAPE, "image_shape": INPUT_SHAPE},
            ValueError,
            "input_shape=.*image_shape=",
        ),
        ({"unshared": True}, TypeError, "filters has 4 dimensions; conv2d takes 6"),
    ],
)
def test_a_wrong_argument_is_refused_by_name_and_value(arguments, error, message):
    with pytest.raises(error, match=message):
        conv2d(**{"input": X4, "filters": W4} | arguments)


MISFITS = {
    "channels": ((2, 4, 7, 5), (8, 3, 3, 2), {}, "4 channels.*take 3 x num_groups=1"),
    "channels of groups": ((2, 4, 7, 5), (8, 4, 3, 2), {"num_groups": 2}, "take 4 x num_groups=2"),
    "filters of groups": ((2, 4, 7, 5), (7, 2, 3, 2), {"num_groups": 2}, "7 filters.*num_groups=2"),
    "no rows": ((2, 4, 2, 5), (8, 4, 3, 2), {}, "no rows"),
    "no cols": ((2, 4, 7, 5), (8, 4, 3, 2), {"filter_dilation": (1, 5)}, "no cols"),
    "filters without rows": ((2, 4, 7, 5), (8, 4, 0, 2), {}, "have no rows"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_shapes_that_do_not_fit_are_refused_while_the_graph_is_built(misfit):
    input_shape, filters_shape, options, message = MISFITS[misfit]
    with pytest.raises(ValueError, match=message):
        conv2d(X4, W4, input_shape, filters_shape, **options)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("misfit", MISFITS)
def test_shapes_that_do_not_fit_are_refused_when_the_function_runs(mode, misfit):
    input_shape, filters_shape, options, message = MISFITS[misfit]
    x, w = tensors("xw")
    f = pytensor.function([x, w], conv2d(x, w, **options), mode=mode)
    with pytest.raises(ValueError, match=message):
        f(np.ones(input_shape), np.ones(filters_shape))


@pytest.mark.parametrize("misfit", [name for name, values in MISFITS.items() if not values[2]])
def test_kernels_refuse_shapes_that_do_not_fit_and_give_them(misfit):
    input_shape, filters_shape, _, _ = MISFITS[misfit]
    f = plain_function("NUMBA", True, "float64")
    # Numba formats no messages: the shapes are arguments of the error.
    with pytest.raises(ValueError) as error:
        f(np.ones(input_shape), np.ones(filters_shape), np.ones((2, 8, 1, 1)))
    assert filters_shape in error.value.args


def test_image_shape_is_deprecated_and_means_input_shape():
    with pytest.warns(DeprecationWarning, match="image_shape is the old name of input_shape") as warned:
        y = conv2d(X4, W4, image_shape=INPUT_SHAPE)
    assert warned[0].filename == __file__
    assert y.type.shape == (2, None, None, None)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_the_spelling_of_2015_takes_image_shape_third_and_does_not_warn(mode):
    x, w = random(INPUT_SHAPE), random(filters_shape({}))
    y = conv.conv2d(pt.as_tensor(x), pt.as_tensor(w), INPUT_SHAPE, (8, 4, 3, 2), "full", (2, 1))
    expected = reference(x, w, ((2, 2), (1, 1)), subsample=(2, 1))
    np.testing.assert_allclose(pytensor.function([], y, mode=mode)(), expected)
    with pytest.raises(ValueError, match=r"image_shape=\(1, 2\)"):
        conv.conv2d(X4, W4, (1, 2))


@pytest.mark.parametrize(
    "function, names",
    [
        (
            nnet.conv2d,
            "input filters input_shape filter_shape border_mode subsample filter_flip image_shape "
            "filter_dilation num_groups unshared",
        ),
        (nnet.conv.conv2d, "input filters image_shape filter_shape border_mode subsample"),
    ],
)
def test_the_parameters_are_theanos_in_their_order(function, names):
    assert " ".join(inspect.signature(function).parameters) == names


@st.composite
def drawn_cases(draw):
    """Shapes of input and filters, options, and the padding on all sides; not all leave an output."""

    def pair(first, last):
        return draw(st.tuples(st.integers(first, last), st.integers(first, last)))

    groups, lengths, dilation = draw(st.integers(1, 3)), pair(1, 4), pair(1, 3)
    per_group, filters_per_group = pair(1, 3)
    spans = [(n - 1) * d + 1 for n, d in zip(lengths, dilation, strict=True)]
    kind = draw(st.sampled_from(["valid", "half", "full", "int", "axes", "sides"]))
    pads = {
        "valid": ((0, 0), (0, 0)),
        "half": tuple((span // 2, span // 2) for span in spans),
        "full": tuple((span - 1, span - 1) for span in spans),
    }
    border_mode = kind
    if kind == "int":
        border_mode = draw(st.integers(0, 3))
        pads[kind] = ((border_mode, border_mode),) * 2
    elif kind == "axes":
        border_mode = pair(0, 3)
        pads[kind] = tuple((n, n) for n in border_mode)
    elif kind == "sides":
        border_mode = pads[kind] = (pair(0, 3), pair(0, 3))
    options = {"subsample": pair(1, 3), "filter_dilation": dilation, "num_groups": groups}
    x_shape = (draw(st.integers(1, 3)), groups * per_group, *pair(1, 9))
    w_shape = (groups * filters_per_group, per_group, *lengths)
    return x_shape, w_shape, border_mode, pads[kind], options, draw(st.booleans()), draw(st.booleans())


def test_whatever_is_drawn_is_scipys_or_refused(mode, for_all_drawn):
    def check(case):
        x_shape, w_shape, border_mode, pads, options, flip, known = case
        # JAX must know all shapes.
        known = known or mode == "JAX"
        spans = [(n - 1) * d + 1 for n, d in zip(w_shape[2:], options["filter_dilation"], strict=True)]
        fits = all(n + sum(pad) >= span for n, pad, span in zip(x_shape[2:], pads, spans, strict=True))
        x, w, dx, dw = (random(shape) for shape in (x_shape, w_shape) * 2)
        symbols = [pt.tensor(dtype="float64", shape=a.shape if known else (None,) * 4) for a in (x, w)]

        def compiled():
            y = conv2d(*symbols, border_mode=border_mode, filter_flip=flip, **options)
            outputs = [y, *grad((y**2).sum() / 2, symbols)]
            return pytensor.function(symbols, outputs, mode=mode)

        if not fits:
            with pytest.raises(ValueError):
                compiled()(x, w)
            return
        convolved = partial(reference, pads=pads, flip=flip, **options)
        y, gx, gw = map(np.asarray, compiled()(x, w))
        np.testing.assert_allclose(y, convolved(x, w), rtol=1e-9, atol=1e-10)
        # The output is linear in each; half the square changes by the output times its change.
        np.testing.assert_allclose((gx * dx).sum(), (y * convolved(dx, w)).sum(), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose((gw * dw).sum(), (y * convolved(x, dw)).sum(), rtol=1e-8, atol=1e-8)

    for_all_drawn(drawn_cases(), check)
