"""A training step of AlexNet on synthetic images, beside PyTorch.

Both start from the same weights and draw what is dropped in the same way, so that their costs can be
compared.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from benchmarks.contenders import CHANNELS_LAST, OURS

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.0005
SEED, DEVIATION, DROPOUT = 23455, 0.01, 0.5
SIDE, N_CLASSES, N_HIDDEN = 227, 1000, 4096
N_BATCHES = 2
# Filters, channels they take, their side, stride, padding, groups, and the side of the output.
CONVOLUTIONS = (
    (96, 3, 11, 4, 0, 1, 55),
    (256, 48, 5, 1, 2, 2, 27),
    (384, 256, 3, 1, 1, 1, 13),
    (384, 192, 3, 1, 1, 2, 13),
    (256, 192, 3, 1, 1, 2, 13),
)
FULLY_CONNECTED = ((256 * 6 * 6, N_HIDDEN), (N_HIDDEN, N_HIDDEN), (N_HIDDEN, N_CLASSES))
BIASES = (0, 1, 0, 1, 1, 1, 1, 0)


@dataclass(frozen=True)
class AlexNetStep:
    """A training step of the network of 2012."""

    batch_size: int = 32
    floatX: str = "float32"
    network: str = "alexnet"

    def gflop(self):
        """Dense arithmetic of a step in 10**9 operations, counted as `Workload.gflop` counts it."""
        layers = [filters * below * side**2 * out**2 for filters, below, side, _, _, _, out in CONVOLUTIONS]
        layers += map(prod, FULLY_CONNECTED)
        return 2 * self.batch_size * (3 * sum(layers) - layers[0]) / 1e9

    def images_and_labels(self):
        """Draw bytes of shape ``(images, 3, rows, cols)``, the mean image, and labels."""
        rng = np.random.default_rng(1)
        n = N_BATCHES * self.batch_size
        images = rng.integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)
        labels = rng.integers(0, N_CLASSES, n, dtype=np.int32)
        return images, images.mean(axis=0, dtype="float64").astype(self.floatX), labels

    def initial_parameters(self):
        """Pairs of ``W`` and ``b``, drawn as the package draws them; filters are for true convolution."""
        rng = np.random.RandomState(SEED)
        shapes = [(filters, below, side, side) for filters, below, side, *_ in CONVOLUTIONS]
        for shape, value in zip((*shapes, *FULLY_CONNECTED), BIASES, strict=True):
            n_biases = shape[0] if len(shape) == 4 else shape[1]
            W = rng.normal(scale=DEVIATION, size=shape).astype(self.floatX)
            yield W, np.full(n_biases, value, self.floatX)

    def dropout_masks(self, iteration):
        """Draw which units of the two hidden layers are kept."""
        rng = np.random.default_rng([SEED, iteration])
        return [
            (rng.random((self.batch_size, N_HIDDEN), dtype=np.float32) >= DROPOUT).astype(self.floatX)
            for _ in range(2)
        ]


def task(name, workload):
    """Return a function of the number of steps taken, which takes one and returns its cost."""
    step = _ours(workload) if name == OURS else _pytorchs(workload, name == CHANNELS_LAST)
    n = workload.batch_size

    def call(index):
        first = index % N_BATCHES * n
        return step(slice(first, first + n), workload.dropout_masks(index))

    return call


def _ours(workload):
    import pytensor
    import pytensor.tensor as pt

    from deeplearning_tutorial.alexnet import AlexNet
    from deeplearning_tutorial.training.memory import retain_freed_memory
    from deeplearning_tutorial.training.parameters import named_parameters
    from deeplearning_tutorial.training.updates import momentum_updates, zero_velocities

    pytensor.config.floatX = workload.floatX
    # As the scripts do.
    retain_freed_memory()
    n = workload.batch_size
    images, mean, labels = (
        pytensor.shared(array, shape=array.shape, borrow=True) for array in workload.images_and_labels()
    )
    index = pt.lscalar("index")
    masks = pt.matrices("mask6", "mask7")
    minibatch = slice(index * n, (index + 1) * n)
    x, y = images[minibatch], labels[minibatch]
    layers = AlexNet().build(np.random.RandomState(SEED), pt.cast(x, mean.dtype) - mean, n, masks)
    cost = layers["output"].negative_log_likelihood(y)
    parameters = named_parameters(**layers)
    rates = LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
    updates = momentum_updates(cost, parameters, zero_velocities(parameters), *rates)
    f = pytensor.function([index, *masks], cost, updates=updates)
    return lambda minibatch, masks: f(minibatch.start // n, *masks)


def _pytorchs(workload, channels_last):
    import torch
    from torch import nn

    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, mean, labels = map(torch.from_numpy, workload.images_and_labels())
    images, labels = images.contiguous(memory_format=layout), labels.long()
    parameters = [[torch.from_numpy(array) for array in pair] for pair in workload.initial_parameters()]
    layers = []
    for i, (filters, below, side, stride, padding, groups, _) in enumerate(CONVOLUTIONS):
        convolution = nn.Conv2d(below * groups, filters, side, stride, padding, groups=groups)
        layers += [convolution, nn.ReLU(inplace=True)]
        if i < 2:
            # PyTorch divides alpha by the number of maps.
            layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2))
        if i in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, 2))
    convolutions = nn.Sequential(*layers, nn.Flatten())
    fc6, fc7, output = linear = [nn.Linear(*shape) for shape in FULLY_CONNECTED]
    trained = [layer for layer in layers if isinstance(layer, nn.Conv2d)] + linear
    with torch.no_grad():
        for layer, (W, b) in zip(trained, parameters, strict=True):
            # PyTorch correlates instead of convolving, and keeps W transposed.
            layer.weight.copy_(W.flip(2, 3) if W.ndim == 4 else W.T)
            layer.bias.copy_(b)
    for module in (convolutions, *linear):
        module.to(getattr(torch, workload.floatX))
    convolutions.to(memory_format=layout)
    optimizer = torch.optim.SGD(
        [
            {"params": [layer.weight for layer in trained], "weight_decay": WEIGHT_DECAY},
            {"params": [layer.bias for layer in trained]},
        ],
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        fused=True,
    )

    def step(minibatch, masks):
        mask6, mask7 = map(torch.from_numpy, masks)
        optimizer.zero_grad()
        hidden = convolutions(images[minibatch] - mean)
        hidden = nn.functional.relu(fc6(hidden)) * mask6
        hidden = nn.functional.relu(fc7(hidden)) * mask7
        loss = nn.functional.cross_entropy(output(hidden), labels[minibatch])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
