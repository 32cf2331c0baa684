"""The networks in JAX, each step one compiled function.

Channels come last and pooling is a maximum over reshaped windows: of the ways to write it, the fastest found.
"""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.workload import L2_REG, LEARNING_RATE

_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


class Network:
    """The network of a workload, for training and evaluation."""

    def __init__(self, workload):
        jax.config.update("jax_enable_x64", workload.floatX == "float64")
        self.workload = workload
        # lax correlates instead of convolving.
        self.params = [
            (jnp.asarray(W[:, :, ::-1, ::-1].transpose(2, 3, 1, 0) if W.ndim == 4 else W), jnp.asarray(b))
            for W, b in workload.initial_parameters()
        ]

    def _minibatch(self, images, labels, index):
        n = self.workload.batch_size
        return lax.dynamic_slice_in_dim(images, index * n, n), lax.dynamic_slice_in_dim(labels, index * n, n)

    def _scores(self, params, x):
        if self.workload.network == "lenet":
            x = x.reshape(-1, 28, 28, 1)
        for W, b in params[:-1]:
            if W.ndim == 4:
                maps = lax.conv_general_dilated(x, W, (1, 1), "VALID", dimension_numbers=_CHANNELS_LAST)
                x = jnp.tanh(_max_pool(maps) + b)
            else:
                # Hidden units meet the features channel by channel, as in the package.
                features = x.transpose(0, 3, 1, 2).reshape(len(x), -1) if x.ndim == 4 else x
                x = jnp.tanh(features @ W + b)
        W, b = params[-1]
        return x @ W + b

    def _cost(self, params, x, y):
        log_p = jax.nn.log_softmax(self._scores(params, x))
        cost = -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))
        if self.workload.network == "mlp":
            cost += L2_REG * sum((W**2).sum() for W, _ in params)
        return cost

    def training(self, images, labels):
        """Return a function of a minibatch's index that takes a step of gradient descent."""
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        rate = LEARNING_RATE[self.workload.network]

        def update(params, images, labels, index):
            cost, grads = jax.value_and_grad(self._cost)(params, *self._minibatch(images, labels, index))
            return cost, jax.tree.map(lambda param, grad: param - rate * grad, params, grads)

        update = jax.jit(update, donate_argnums=0)

        def step(index):
            cost, self.params = update(self.params, images, labels, index)
            return cost

        return step

    def evaluation(self, images, labels):
        """Return a function that gives the fraction of misclassified images."""
        images, labels = jnp.asarray(images), jnp.asarray(labels)
        n_batches = len(images) // self.workload.batch_size

        @jax.jit
        def errors(params, images, labels, index):
            x, y = self._minibatch(images, labels, index)
            return jnp.mean(self._scores(params, x).argmax(1) != y)

        return lambda: sum(errors(self.params, images, labels, i) for i in range(n_batches)) / n_batches


def _max_pool(maps):
    batch, rows, cols, channels = maps.shape
    rows, cols = rows // 2, cols // 2
    windows = maps[:, : 2 * rows, : 2 * cols].reshape(batch, rows, 2, cols, 2, channels)
    return windows.max((2, 4))
