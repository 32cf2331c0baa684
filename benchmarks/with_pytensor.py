"""The networks from the package's layer classes, with the graphs and functions of its scripts."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from benchmarks.workload import L2_REG, LEARNING_RATE, N_CLASSES, N_HIDDEN, N_PIXELS
from deeplearning_tutorial import MLP, HiddenLayer, LeNetConvPoolLayer, LogisticRegression
from deeplearning_tutorial.training.memory import retain_freed_memory


class Network:
    """The network of a workload, for training and evaluation."""

    def __init__(self, workload):
        pytensor.config.floatX = workload.floatX
        # As the scripts do.
        retain_freed_memory()
        self.workload = workload
        self.x, self.y = pt.matrix("x"), pt.ivector("y")
        top, self.params, penalty = getattr(self, f"_{workload.network}")()
        self.cost = top.negative_log_likelihood(self.y) + penalty
        self.errors = top.errors(self.y)

    def _lenet(self):
        workload, rng = self.workload, np.random.RandomState(23455)
        output = self.x.reshape((workload.batch_size, 1, 28, 28))
        params = []
        for filter_shape, image_shape in workload.convolutions():
            layer = LeNetConvPoolLayer(rng, output, filter_shape, image_shape)
            output = layer.output
            params += layer.params
        n_features = workload.n_features()
        hidden = HiddenLayer(rng, output.reshape((workload.batch_size, n_features)), n_features, N_HIDDEN)
        top = LogisticRegression(hidden.output, N_HIDDEN, N_CLASSES)
        return top, params + hidden.params + top.params, 0

    def _mlp(self):
        mlp = MLP(np.random.RandomState(1234), self.x, N_PIXELS, N_HIDDEN, N_CLASSES)
        return mlp, mlp.params, 0.0 * mlp.L1 + L2_REG * mlp.L2_sqr

    def _logistic(self):
        top = LogisticRegression(self.x, N_PIXELS, N_CLASSES)
        return top, top.params, 0

    def _function(self, images, labels, outputs, updates=()):
        images, labels = (pytensor.shared(a, shape=a.shape, borrow=True) for a in (images, labels))
        index, n = pt.lscalar("index"), self.workload.batch_size
        givens = {self.x: images[index * n : (index + 1) * n], self.y: labels[index * n : (index + 1) * n]}
        return pytensor.function([index], outputs, updates=updates, givens=givens)

    def training(self, images, labels):
        """Return a function of a minibatch's index that takes a step of gradient descent."""
        rate = LEARNING_RATE[self.workload.network]
        grads = pytensor.grad(self.cost, self.params)
        updates = [(param, param - rate * grad) for param, grad in zip(self.params, grads, strict=True)]
        return self._function(images, labels, self.cost, updates)

    def evaluation(self, images, labels):
        """Return a function that gives the fraction of misclassified images."""
        values = [value for layer in self.workload.initial_parameters() for value in layer]
        for param, value in zip(self.params, values, strict=True):
            param.set_value(value)
        errors = self._function(images, labels, self.errors)
        n_batches = len(images) // self.workload.batch_size
        return lambda: np.mean([errors(index) for index in range(n_batches)])
