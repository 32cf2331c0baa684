"""What is timed: a network of the tutorial, its sizes, and how much arithmetic it takes."""

from dataclasses import dataclass
from math import prod

import numpy as np

LEARNING_RATE = {"lenet": 0.1, "mlp": 0.01, "logistic": 0.13}
L2_REG = 0.0001
N_PIXELS, N_HIDDEN, N_CLASSES = 28 * 28, 500, 10


@dataclass(frozen=True)
class Workload:
    """A training step of ``network``, or the evaluation of the 10,000 test images minibatch by minibatch."""

    network: str = "lenet"
    task: str = "step"
    batch_size: int = 500
    nkerns: tuple[int, int] = (20, 50)
    filter_size: int = 5
    floatX: str = "float32"

    def convolutions(self):
        """Pairs of ``filter_shape`` and ``image_shape``, as `LeNetConvPoolLayer` takes them."""
        shapes = []
        if self.network == "lenet":
            channels, side = 1, 28
            for filters in self.nkerns:
                filter_shape = (filters, channels, self.filter_size, self.filter_size)
                shapes.append((filter_shape, (self.batch_size, channels, side, side)))
                channels, side = filters, (side - self.filter_size + 1) // 2
        return shapes

    def n_features(self):
        """Length of what enters the first fully connected layer."""
        if not self.convolutions():
            return N_PIXELS
        (filters, *_), (*_, side) = self.convolutions()[-1]
        return filters * ((side - self.filter_size + 1) // 2) ** 2

    def fully_connected(self):
        """Shapes of the weights, ``(n_in, n_out)``."""
        widths = [self.n_features(), N_CLASSES]
        if self.network != "logistic":
            widths.insert(1, N_HIDDEN)
        return list(zip(widths, widths[1:], strict=False))

    def gflop(self):
        """Dense arithmetic of the matrix products and convolutions, in 10**9 operations.

        A multiplication and an addition are two operations. A training step computes every layer three times,
        for the output and for the gradients of weights and input, but never the input gradient of the first.
        """
        layers = [
            prod(filter_shape) * (image_shape[2] - self.filter_size + 1) ** 2
            for filter_shape, image_shape in self.convolutions()
        ]
        layers += [n_in * n_out for n_in, n_out in self.fully_connected()]
        if self.task == "evaluation":
            return 2 * 10_000 * sum(layers) / 1e9
        return 2 * self.batch_size * (3 * sum(layers) - layers[0]) / 1e9

    def initial_parameters(self):
        """Pairs of ``W`` and ``b``, drawn as the package's layers draw theirs.

        Written here once more, so that equal costs tell that the contenders compute the same. Filters are for
        true convolution. The uppermost ``W`` is zero, except for an evaluation, which then would find class
        0 everywhere.
        """
        rng = np.random.RandomState(1234 if self.network == "mlp" else 23455)
        shapes = [
            (shape, prod(shape[1:]), shape[0] * prod(shape[2:]) // 4, shape[0])
            for shape, _ in self.convolutions()
        ]
        shapes += [(shape, *shape, shape[1]) for shape in self.fully_connected()]
        parameters = []
        for i, (shape, fan_in, fan_out, n_biases) in enumerate(shapes):
            if i == len(shapes) - 1 and self.task == "step":
                W = np.zeros(shape)
            else:
                bound = np.sqrt(6 / (fan_in + fan_out))
                W = rng.uniform(-bound, bound, shape)
            parameters.append((W.astype(self.floatX), np.zeros(n_biases, self.floatX)))
        return parameters
