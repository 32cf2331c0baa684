import numpy as np
import pytensor
import pytensor.tensor as pt
from nnet.modes import REWRITTEN_FOR_NUMBA


def test_updates_come_after_all_that_does_not_need_them():
    x = pt.dmatrix("x")
    weights, velocity = (pytensor.shared(np.ones((3, 3)), shape=(3, 3)) for _ in range(2))
    bias, state = (pytensor.shared(np.ones(3), shape=(3,), name=name) for name in ("bias", "state"))
    new_state = state * 3 % 7
    gradient = pt.dot(x.T, x) + new_state
    new_velocity = 0.5 * velocity - gradient
    cost = pt.exp(pt.dot(x, weights) + bias).sum()
    updates = {
        bias: bias - gradient.sum(0),
        velocity: new_velocity,
        weights: weights + new_velocity,
        state: new_state,
    }
    f = pytensor.function([x], cost, updates=updates, mode=REWRITTEN_FOR_NUMBA)
    order = f.maker.fgraph.toposort()
    roots = f.maker.fgraph.destroy_handler.refresh_droot_impact()[0]
    # All follows from the state, so that its update cannot come last.
    inputs = [each for each in f.maker.fgraph.inputs if each.name != "state"]
    following = [
        any(roots[node.inputs[i]] in inputs for [i] in node.op.destroy_map.values()) for node in order
    ]
    first = following.index(True)
    for n in range(first + 1, len(order)):
        following[n] |= any(following[order.index(v.owner)] for v in order[n].inputs if v.owner)
    assert all(following[first:]) and first > 1
    assert f(np.zeros((1, 3))) == 3 * np.e
    np.testing.assert_array_equal(weights.get_value(), 1 + 0.5 - 3 * np.ones((3, 3)))
    np.testing.assert_array_equal(velocity.get_value(), 0.5 - 3 * np.ones((3, 3)))
    np.testing.assert_array_equal(bias.get_value(), [1 - 9] * 3)
    np.testing.assert_array_equal(state.get_value(), [3] * 3)
