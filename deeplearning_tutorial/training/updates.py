"""Gradient descent with momentum and weight decay."""

import numpy as np
import pytensor


def zero_velocities(parameters):
    """Return a velocity of zero for each parameter.

    Parameters
    ----------
    parameters : dict of str to shared variable

    Returns
    -------
    dict of str to shared variable
        By the same names, and of the same shapes and dtypes.
    """
    zeros = {name: np.zeros_like(param.get_value(borrow=True)) for name, param in parameters.items()}
    return {
        name: pytensor.shared(value, name=name, borrow=True, shape=value.shape)
        for name, value in zeros.items()
    }


def momentum_updates(cost, parameters, velocities, learning_rate, momentum, weight_decay):
    """Derive a step of gradient descent.

    Parameters
    ----------
    cost : TensorVariable
        A scalar.
    parameters, velocities : dict of str to shared variable
        What is trained, and its velocities by the same names, see `zero_velocities`.
    learning_rate, momentum, weight_decay : float
        Weights decay, biases, which are vectors, do not.

    Returns
    -------
    list of (shared variable, TensorVariable)
        What ``pytensor.function`` takes as ``updates``.

    Notes
    -----
    ``v = momentum * v - weight_decay * learning_rate * w - learning_rate * gradient``, then ``w = w + v``
    (Krizhevsky, Sutskever and Hinton, 2012, section 5).
    """
    gradients = pytensor.grad(cost, list(parameters.values()))
    updates = []
    for (name, param), gradient in zip(parameters.items(), gradients, strict=True):
        velocity = velocities[name]
        step = gradient if param.ndim == 1 else gradient + weight_decay * param
        moved = momentum * velocity - learning_rate * step
        updates += [(velocity, moved), (param, param + moved)]
    return updates
