import inspect
import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.cases import CONVOLUTIONS, MISFITS, convolution, reference_of
from nnet.references import Convolution
from pytensor.gradient import DisconnectedInputError, grad, pushforward, verify_grad

from deeplearning_tutorial import nnet
from deeplearning_tutorial.nnet import conv, conv2d
from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput, conv_output_length

RNG = np.random.default_rng(5)
INPUT_SHAPE = (2, 4, 7, 5)
PLAIN = Convolution(((0, 0), (0, 0)))


def tensors(names, dtype="float64"):
    return [pt.tensor4(name, dtype=dtype) for name in names]


def filters_shape(options):
    return (8, INPUT_SHAPE[1] // options.get("num_groups", 1), 3, 2)


def random(shape, dtype="float64"):
    return RNG.normal(size=shape).astype(dtype)


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("case", ["plain", "half", "everything"])
def test_first_and_second_gradients_agree_with_differences(mode, case):
    options, _ = CONVOLUTIONS[case]
    x, w = random((1, 4, 6, 5)), random((2, *filters_shape(options)[1:]))

    def output(x, w):
        return conv2d(x, w, **options)

    for function in (
        output,
        lambda x, w: grad((output(x, w) ** 2).sum(), x),
        lambda x, w: grad((output(x, w) ** 2).sum(), w),
    ):
        verify_grad(function, [x, w], rng=np.random.default_rng(2), mode=mode)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_numba_has_kernels_for_all_derivatives(case):
    options, _ = CONVOLUTIONS[case]
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
    ones = np.ones_like(output)
    for result, expected in (
        (output, PLAIN.value(moved, turned)),
        (input_gradient.transpose(3, 2, 1, 0), PLAIN.input_gradient(moved, turned, ones)),
        (filters_gradient[:, :, ::-1], PLAIN.filters_gradient(moved, turned, ones)),
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["py", "NUMBA"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_reaches_what_it_is_multiplied_with_and_no_more(mode, dtype):
    x, w, g = tensors("xwg", dtype)
    y = conv2d(x, w)
    f = pytensor.function([x, w, g], [y, *grad(None, [x, w], known_grads={y: g})], mode=mode)
    # A filter of 3 x 3 fills no vector: what fills it up is not to spread one infinity to more than 9 pixels.
    ones, gradient = np.ones((1, 1, 3, 3), dtype), np.zeros((1, 1, 10, 10), dtype)
    gradient[0, 0, 4, 5] = np.inf
    expected = np.zeros((1, 1, 12, 12))
    expected[0, 0, 4:7, 5:8] = np.inf
    np.testing.assert_array_equal(f(np.ones((1, 1, 12, 12), dtype), ones, gradient)[1], expected)
    rng = np.random.default_rng(17)
    for (channels, n_filters, *k), density in itertools.product(
        ((1, 1, 3, 3), (1, 2, 2, 3), (3, 5, 2, 2), (3, 9, 1, 1), (2, 17, 3, 2)), (1, 0.5, 0.1)
    ):
        shapes = (2, channels, 9, 8), (n_filters, channels, *k), (2, n_filters, 10 - k[0], 9 - k[1])
        for position, value in itertools.product(range(3), (np.inf, -np.inf, np.nan)):
            # Small integers, whose sums are exact in any order.
            arrays = [rng.integers(1, 4, shape).astype(dtype) for shape in shapes]
            arrays[2][rng.random(arrays[2].shape) >= density] = 0
            arrays[position].flat[rng.integers(arrays[position].size)] = value
            with np.errstate(invalid="ignore"):
                expected_results = PLAIN.value(*arrays[:2]), *gradients_tap_by_tap(*arrays)
                for result, expected in zip(f(*arrays), expected_results, strict=True):
                    np.testing.assert_array_equal(result, expected, err_msg=f"{shapes} {position} {value}")


def gradients_tap_by_tap(x, w, g):
    """Gradients of a plain convolution; SciPy's, for x, counts products with zeros around ``g`` as well."""
    x_gradient, w_gradient = np.zeros_like(x), np.zeros_like(w)
    for row, col in np.ndindex(w.shape[2:]):
        pixels = np.s_[:, :, row : row + g.shape[2], col : col + g.shape[3]]
        tap = np.s_[:, :, -1 - row, -1 - col]
        x_gradient[pixels] += np.einsum("bkij,kc->bcij", g, w[tap])
        w_gradient[tap] = np.einsum("bkij,bcij->kc", g, x[pixels])
    return x_gradient, w_gradient


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("case", ["plain", "everything"])
def test_forward_mode_is_the_product_rule(mode, case):
    options, _ = CONVOLUTIONS[case]
    convolved = reference_of(Convolution, CONVOLUTIONS[case], True).value
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
        expected = sum(convolved(**values | {name: tangents[name]}) for name in wrt)
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
    np.testing.assert_allclose(y_value, PLAIN.value(x_value, w_value), rtol=1e-10)
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
    np.testing.assert_allclose(pytensor.function([], y, mode=mode)(), PLAIN.value(x, w))


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
@pytest.mark.parametrize("case", ["half, dilation, groups", "full, dilation, strides", "everything"])
def test_shapes_are_known_without_convolving(mode, case):
    options, _ = CONVOLUTIONS[case]
    x_value, w_value = np.ones(INPUT_SHAPE), np.ones(filters_shape(options))
    x, w = tensors("xw")
    y = conv2d(x, w, **options)
    gradients = grad((y**2).sum(), [x, w])
    f = pytensor.function([x, w], [v.shape for v in (y, *gradients)], mode=mode)
    assert not {Conv2d, Conv2dGradFilters, Conv2dGradInput} & set(ops_of(f))
    shapes = x_value.shape, w_value.shape
    output_shape = convolution(case, True).output_shape(*shapes)
    assert [tuple(s) for s in f(x_value, w_value)] == [output_shape, *shapes]


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
        ({"subsample": (4 / 2, 1)}, ValueError, r"subsample=\(2.0, 1\) .*Python 2's division"),
        ({"border_mode": (1, (0, 4 / 2))}, ValueError, r"border_mode=.*Python 2's division"),
        ({"num_groups": 4 / 2}, ValueError, "num_groups=2.0 .*Python 2's division"),
        ({"input_shape": (4 / 2, 4, 7, 5)}, ValueError, "input_shape=.*2.0.*Python 2's division"),
        ({"filter_shape": (pt.lscalar(), 4, 3, 3)}, ValueError, "filter_shape=.*use ints or constants"),
        ({"imshp_logical": (3, 9, 9)}, ValueError, r"imshp_logical=\(3, 9, 9\) is not supported"),
        ({"subsamples": (1, 1)}, TypeError, "unexpected keyword argument 'subsamples'"),
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


@pytest.mark.parametrize("misfit", MISFITS)
def test_shapes_that_do_not_fit_are_refused_while_the_graph_is_built(misfit):
    options, input_shape, filters_shape, message = MISFITS[misfit]
    with pytest.raises(ValueError, match=message):
        conv2d(X4, W4, input_shape, filters_shape, **options)


def test_hints_may_be_constants():
    for two, four in (
        (pt.constant(2), pt.constant([8, 4, 3, 2])),
        (2, (pt.constant(8), 4, 3, pt.constant(2))),
    ):
        assert conv2d(X4, W4, (two, 4, 7, 5), four).type.shape == (2, 8, 5, 4)
        assert conv.conv2d(X4, W4, (two, 4, 7, 5), four).type.shape == (2, 8, 5, 4)


@pytest.mark.parametrize("function", [conv2d, conv.conv2d])
def test_what_told_theano_how_to_compute_is_ignored_with_a_warning(function):
    arguments = {"unroll_batch": 4, "unroll_kern": 4, "unroll_patch": True, "version": -1, "verbose": 0}
    with pytest.warns(UserWarning, match="unroll_batch, unroll_kern, .*leave it out") as warned:
        y = function(X4, W4, **arguments, direction_hint="forward", openmp=None, imshp_logical=None)
    assert warned[0].filename == __file__
    assert y.owner.op == function(X4, W4).owner.op


def test_image_shape_is_deprecated_and_means_input_shape():
    with pytest.warns(DeprecationWarning, match="image_shape is the old name of input_shape") as warned:
        y = conv2d(X4, W4, image_shape=INPUT_SHAPE)
    assert warned[0].filename == __file__
    assert y.type.shape == (2, None, None, None)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_the_spelling_of_2015_takes_image_shape_third_and_does_not_warn(mode):
    x, w = random(INPUT_SHAPE), random(filters_shape({}))
    y = conv.conv2d(pt.as_tensor(x), pt.as_tensor(w), INPUT_SHAPE, (8, 4, 3, 2), "full", (2, 1))
    expected = Convolution(((2, 2), (1, 1)), subsample=(2, 1)).value(x, w)
    np.testing.assert_allclose(pytensor.function([], y, mode=mode)(), expected)
    with pytest.raises(ValueError, match=r"image_shape=\(1, 2\)"):
        conv.conv2d(X4, W4, (1, 2))


@pytest.mark.parametrize(
    "function, names",
    [
        (
            nnet.conv2d,
            "input filters input_shape filter_shape border_mode subsample filter_flip image_shape "
            "filter_dilation num_groups unshared kwargs",
        ),
        (nnet.conv.conv2d, "input filters image_shape filter_shape border_mode subsample kwargs"),
    ],
)
def test_the_parameters_are_theanos_in_their_order(function, names):
    assert " ".join(inspect.signature(function).parameters) == names
