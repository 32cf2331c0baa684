"""What the Ops must give, from SciPy, from NumPy's interpolation and from sums window by window.

A reference is a function of the inputs, then ``g``, then a direction for each input. It gives one after the
other: the output y; the gradients of ``(y * g).sum()``, one per input; how y changes along the directions;
the gradients of the gradients times the directions, summed, again one per input.
"""

import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import signal

correlate = partial(signal.correlate, method="direct")


def bilinear(value, first_gradient, second_gradient):
    """Make a reference of ``value(a, b)`` and its gradients, ``gradient(a, b, g)``."""

    def reference(a, b, g, da, db):
        yield value(a, b)
        yield first_gradient(a, b, g)
        yield second_gradient(a, b, g)
        yield value(da, b) + value(a, db)
        yield first_gradient(a, db, g)
        yield second_gradient(da, b, g)

    return reference


def spread(array, steps):
    """Put zeros between the elements of the last two axes, which come to lie ``steps`` apart."""
    lengths = [(n - 1) * step + 1 for n, step in zip(array.shape[-2:], steps, strict=True)]
    wide = np.zeros((*array.shape[:-2], *lengths))
    wide[..., :: steps[0], :: steps[1]] = array
    return wide


@dataclass(frozen=True)
class Convolution:
    """SciPy's correlation of four-dimensional arrays, filter by filter, and sums tap by tap."""

    pads: tuple
    subsample: tuple = (1, 1)
    filter_dilation: tuple = (1, 1)
    num_groups: int = 1
    flip: bool = True

    def padded(self, x):
        return np.pad(x, ((0, 0), (0, 0), *self.pads))

    def flipped(self, w):
        return w[..., ::-1, ::-1] if self.flip else w

    def by_filter(self, w):
        """Yield each filter's slice of g, its slice of x, and itself as SciPy correlates it."""
        per_group = len(w) // self.num_groups
        for k, kernel in enumerate(spread(self.flipped(w), self.filter_dilation)):
            first = k // per_group * w.shape[1]
            yield np.s_[:, k : k + 1], np.s_[:, first : first + w.shape[1]], kernel[np.newaxis]

    def value(self, x, w):
        x = self.padded(x)
        maps = [correlate(x[channels], kernel, "valid") for _, channels, kernel in self.by_filter(w)]
        return np.concatenate(maps, axis=1)[:, :, :: self.subsample[0], :: self.subsample[1]]

    def input_gradient(self, x, w, g):
        """Add up what each tap of the filters passes to the pixels that it meets."""
        gradient = np.zeros_like(self.padded(x))
        of_group = gradient.reshape(len(x), self.num_groups, w.shape[1], *gradient.shape[2:])
        g = g.reshape(len(g), self.num_groups, -1, *g.shape[2:])
        w = self.flipped(w).reshape(self.num_groups, -1, *w.shape[1:])
        for taps in np.ndindex(w.shape[3:]):
            rows, cols = (
                slice(tap * dilation, tap * dilation + (n - 1) * stride + 1, stride)
                for tap, dilation, stride, n in zip(
                    taps, self.filter_dilation, self.subsample, g.shape[3:], strict=True
                )
            )
            of_group[..., rows, cols] += np.einsum("bgkij,gkc->bgcij", g, w[:, :, :, *taps])
        (top, _), (left, _) = self.pads
        return gradient[:, :, top : top + x.shape[2], left : left + x.shape[3]]

    def filters_gradient(self, x, w, g):
        x, g = self.padded(x), spread(g, self.subsample)
        # Longer than the filter where the stride leaves a rest of x.
        every = [correlate(x[channels], g[k], "valid") for k, channels, _ in self.by_filter(w)]
        rows, cols = (slice(0, n * d, d) for n, d in zip(w.shape[2:], self.filter_dilation, strict=True))
        return self.flipped(np.concatenate(every)[:, :, rows, cols][:, :, : w.shape[2], : w.shape[3]])

    def output_shape(self, x_shape, w_shape):
        lengths = [
            len(range(0, n + sum(pad) - (k - 1) * dilation, stride))
            for n, pad, k, dilation, stride in zip(
                x_shape[2:], self.pads, w_shape[-2:], self.filter_dilation, self.subsample, strict=True
            )
        ]
        return (x_shape[0], w_shape[0], *lengths)

    def reference(self, x, w, g, dx, dw):
        if not (x.size and w.size):
            return [np.zeros_like(array) for array in (g, x, w, g, x, w)]
        return bilinear(self.value, self.input_gradient, self.filters_gradient)(x, w, g, dx, dw)

    def transposed(self, *lengths):
        """Return the reference of the transpose that gives ``lengths`` rows and columns."""

        def value(maps, w):
            shape = len(maps), w.shape[1] * self.num_groups, *lengths
            return self.input_gradient(np.zeros(shape), w, maps)

        return bilinear(
            value, lambda maps, w, g: self.value(g, w), lambda maps, w, g: self.filters_gradient(g, w, maps)
        )


@dataclass(frozen=True)
class Unshared(Convolution):
    """Each pixel of each window times its weight, one after the other."""

    def terms(self, w):
        """Yield a weight's index, that of the pixel it meets in the padded input, and of the output."""
        n_filters, *_, per_group, rows, cols = w.shape
        for index in np.ndindex(w.shape):
            k, row, col, channel, *taps = index
            at = [
                position * stride + tap * dilation
                for position, stride, tap, dilation in zip(
                    (row, col), self.subsample, taps, self.filter_dilation, strict=True
                )
            ]
            first = k // (n_filters // self.num_groups) * per_group
            yield index, (slice(None), first + channel, *at), (slice(None), k, row, col)

    def value(self, x, w):
        x, w = self.padded(x), self.flipped(w)
        y = np.zeros((len(x), *w.shape[:3]))
        for weight, pixel, position in self.terms(w):
            y[position] += w[weight] * x[pixel]
        return y

    def input_gradient(self, x, w, g):
        w, gradient = self.flipped(w), np.zeros_like(self.padded(x))
        for weight, pixel, position in self.terms(w):
            gradient[pixel] += w[weight] * g[position]
        (top, _), (left, _) = self.pads
        return gradient[:, :, top : top + x.shape[2], left : left + x.shape[3]]

    def filters_gradient(self, x, w, g):
        x, gradient = self.padded(x), np.empty_like(w)
        for weight, pixel, position in self.terms(w):
            gradient[weight] = x[pixel] @ g[position]
        return self.flipped(gradient)


@dataclass(frozen=True)
class Pooling:
    """NumPy's maximum or sum of one window after the other."""

    ws: tuple
    ignore_border: bool
    stride: tuple = None
    pad: tuple = (0, 0)
    mode: str = "max"

    def windows_of_axes(self, lengths):
        """For both axes the part of each window that lies inside, as slices."""
        return [
            windows_of_axis(*of_axis, self.ignore_border)
            for of_axis in zip(lengths, self.ws, self.stride or self.ws, self.pad, strict=True)
        ]

    def output_shape(self, shape):
        return (*shape[:-2], *map(len, self.windows_of_axes(shape[-2:])))

    def weights(self, window):
        """How y changes with each element; each of the tied maxima counts whole, and a NaN is none."""
        if self.mode == "max":
            return window == window.max(axis=(-2, -1), keepdims=True)
        whole = np.prod(self.ws) if self.mode == "average_inc_pad" and self.ignore_border else None
        return np.ones_like(window) / (1 if self.mode == "sum" else whole or np.prod(window.shape[-2:]))

    def reference(self, x, g, dx):
        y, gradient = np.zeros(self.output_shape(x.shape)), np.zeros_like(x)
        moved = np.zeros_like(y)
        all_rows, all_cols = self.windows_of_axes(x.shape[-2:])
        for (row, rows), (col, cols) in itertools.product(enumerate(all_rows), enumerate(all_cols)):
            window = x[..., rows, cols]
            weights = self.weights(window)
            value = window.max(axis=(-2, -1)) if self.mode == "max" else (weights * window).sum(axis=(-2, -1))
            y[..., row, col] = value
            gradient[..., rows, cols] += weights * g[..., row : row + 1, col : col + 1]
            moved[..., row, col] = (weights * dx[..., rows, cols]).sum(axis=(-2, -1))
        return [y, gradient, moved, np.zeros_like(x)]


def windows_of_axis(length, window, stride, pad, ignore_border):
    if ignore_border:
        starts = range(-pad, length + pad - window + 1, stride)
    else:
        starts = [0]
        while starts[-1] + max(window, stride) < length:
            starts.append(starts[-1] + stride)
    return [slice(max(start, 0), min(start + window, length)) for start in starts]


def upsampling(ratio):
    """Make the reference of NumPy's linear interpolation, along rows and along columns."""

    def matrix(n):
        at = (np.arange(n * ratio) - (ratio - 1) // 2) / ratio
        return np.transpose([np.interp(at, np.arange(n), pixel) for pixel in np.eye(n)])

    def reference(x, g, dx):
        rows, cols = map(matrix, x.shape[2:])
        return [rows @ x @ cols.T, rows.T @ g @ cols, rows @ dx @ cols.T, np.zeros_like(x)]

    return reference
