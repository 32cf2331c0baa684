"""The networks in PyTorch, in the three ways that its users have to make them fast on a CPU."""

import os
import shutil

import torch
from torch import nn

from benchmarks.workload import L2_REG, LEARNING_RATE


class Network:
    """The network of a workload, for training and evaluation; ``way`` is plain, channels_last or compile."""

    def __init__(self, workload, way):
        self.workload = workload
        self.floats = getattr(torch, workload.floatX)
        self.layout = torch.channels_last if way == "channels_last" else torch.contiguous_format
        self.model = _model(workload).to(self.floats)
        if workload.network == "lenet":
            self.model = self.model.to(memory_format=self.layout)
        self._loss = self._nll
        self._predict = self.model
        if way == "compile":
            _check_compiler()
            self._loss = torch.compile(self._nll, dynamic=False)
            self._predict = torch.compile(self.model, dynamic=False)

    def _nll(self, x, y):
        return nn.functional.cross_entropy(self.model(x), y)

    def _tensors(self, images, labels):
        x = torch.from_numpy(images)
        if self.workload.network == "lenet":
            x = x.reshape(-1, 1, 28, 28).contiguous(memory_format=self.layout)
        return x, torch.from_numpy(labels).long()

    def _minibatch(self, index):
        n = self.workload.batch_size
        return slice(index * n, (index + 1) * n)

    def training(self, images, labels):
        """Return a function of a minibatch's index that takes a step of gradient descent."""
        x, y = self._tensors(images, labels)
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        biases = [p for p in self.model.parameters() if p.ndim == 1]
        decay = 0
        if self.workload.network == "mlp":
            # The derivative of the penalty costs less without the penalty.
            decay = 2 * L2_REG
            self.left_out_of_cost = L2_REG * sum(W.detach().square().sum().item() for W in weights)
        optimizer = torch.optim.SGD(
            [{"params": weights, "weight_decay": decay}, {"params": biases}],
            lr=LEARNING_RATE[self.workload.network],
            fused=True,
        )

        def step(index):
            minibatch = self._minibatch(index)
            optimizer.zero_grad()
            loss = self._loss(x[minibatch], y[minibatch])
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def evaluation(self, images, labels):
        """Return a function that gives the fraction of misclassified images."""
        x, y = self._tensors(images, labels)
        n_batches = len(images) // self.workload.batch_size

        @torch.inference_mode()
        def evaluate():
            wrong = 0
            for index in range(n_batches):
                minibatch = self._minibatch(index)
                wrong += (self._predict(x[minibatch]).argmax(1) != y[minibatch]).sum()
            return wrong / (n_batches * self.workload.batch_size)

        return evaluate


def _model(workload):
    layers = []
    for (filters, channels, *size), _ in workload.convolutions():
        layers += [nn.Conv2d(channels, filters, size), nn.MaxPool2d(2), nn.Tanh()]
    if layers:
        layers.append(nn.Flatten())
    for n_in, n_out in workload.fully_connected():
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    # The softmax is part of the cost.
    model = nn.Sequential(*layers[:-1])
    trained = [layer for layer in model if hasattr(layer, "weight")]
    with torch.no_grad():
        for layer, (W, b) in zip(trained, workload.initial_parameters(), strict=True):
            # PyTorch correlates instead of convolving, and keeps W transposed.
            W = torch.from_numpy(W)
            layer.weight.copy_(W.flip(2, 3) if W.ndim == 4 else W.T)
            layer.bias.copy_(torch.from_numpy(b))
    return model


def _check_compiler():
    candidates = [os.environ.get("CXX"), "g++", "clang++"]
    if not any(shutil.which(name) for name in candidates if name):
        raise RuntimeError("torch.compile needs a C++ compiler and found none; install g++ or set CXX")
