"""Random convolutions and poolings, of which some are to be refused."""

from functools import partial

from hypothesis import strategies as st
from nnet.cases import POOL_MODES, Case
from nnet.references import Convolution, Pooling

from deeplearning_tutorial.nnet import conv2d, pool_2d


@st.composite
def drawn_convolutions(draw):
    """A case, whether its shapes are known, and the error where they do not fit."""

    def pair(first, last):
        return draw(st.tuples(st.integers(first, last), st.integers(first, last)))

    groups, lengths, dilation = draw(st.integers(1, 3)), pair(1, 4), pair(1, 3)
    per_group, filters_per_group = pair(1, 3)
    spans = [(n - 1) * d + 1 for n, d in zip(lengths, dilation, strict=True)]
    one, axes, sides = draw(st.integers(0, 3)), pair(0, 3), (pair(0, 3), pair(0, 3))
    border_mode, pads = draw(
        st.sampled_from(
            [
                ("valid", ((0, 0), (0, 0))),
                ("half", tuple((span // 2, span // 2) for span in spans)),
                ("full", tuple((span - 1, span - 1) for span in spans)),
                (one, ((one, one),) * 2),
                (axes, tuple((n, n) for n in axes)),
                (sides, sides),
            ]
        )
    )
    options = {"subsample": pair(1, 3), "filter_dilation": dilation, "num_groups": groups}
    flip = draw(st.booleans())
    x_shape = (draw(st.integers(1, 3)), groups * per_group, *pair(1, 9))
    reference = Convolution(pads, **options, flip=flip)
    case = Case(
        partial(conv2d, border_mode=border_mode, filter_flip=flip, **options),
        reference.reference,
        reference.output_shape,
        [(x_shape, (groups * filters_per_group, per_group, *lengths))],
    )
    too_small = any(n + sum(pad) < span for n, pad, span in zip(x_shape[2:], pads, spans, strict=True))
    return case, draw(st.booleans()), ValueError if too_small else None


@st.composite
def drawn_poolings(draw):
    """A case, whether its shape is known, and the error where padding does not go with the rest."""

    def pair(first, last):
        return draw(st.tuples(st.integers(first, last), st.integers(first, last)))

    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), *pair(1, 9))
    options = {"ws": pair(1, 5), "ignore_border": draw(st.booleans())}
    options["mode"] = draw(st.sampled_from(POOL_MODES))
    if draw(st.booleans()):
        options["stride"] = pair(1, 4)
    if draw(st.integers(0, 2)) == 0:
        options["pad"] = pair(0, 2)
    reference, pad = Pooling(**options), options.get("pad", (0, 0))
    too_large = any(p >= w for p, w in zip(pad, options["ws"], strict=True))
    refused = too_large or any(pad) and not options["ignore_border"]
    nan = options["mode"] == "max" and draw(st.booleans())
    case = Case(
        partial(pool_2d, **options), reference.reference, reference.output_shape, [(shape,)], [], True, nan
    )
    return case, draw(st.booleans()), NotImplementedError if refused else None
