import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.training.updates import momentum_updates, zero_velocities


def test_two_steps_by_hand():
    W = pytensor.shared(np.array([[2.0]]), name="W", shape=(1, 1))
    b = pytensor.shared(np.array([1.0]), name="b", shape=(1,))
    x = pt.dscalar("x")
    parameters = {"W": W, "b": b}
    velocities = zero_velocities(parameters)
    updates = momentum_updates((x * W).sum() + 3 * b.sum(), parameters, velocities, 0.1, 0.5, 0.25)
    step = pytensor.function([x], updates=updates, mode="FAST_COMPILE")
    step(4.0)
    # -0.1 * (4 + 0.25 * 2), and -0.1 * 3, for a bias does not decay.
    np.testing.assert_allclose([velocities["W"].get_value()[0, 0], W.get_value()[0, 0]], [-0.45, 1.55])
    np.testing.assert_allclose([velocities["b"].get_value()[0], b.get_value()[0]], [-0.3, 0.7])
    step(0.0)
    # -0.5 * 0.45 - 0.1 * 0.25 * 1.55, and -0.5 * 0.3 - 0.3.
    np.testing.assert_allclose([velocities["W"].get_value()[0, 0], W.get_value()[0, 0]], [-0.26375, 1.28625])
    np.testing.assert_allclose([velocities["b"].get_value()[0], b.get_value()[0]], [-0.45, 0.25])
