import pytensor.tensor as pt
import pytest
from small_convolutions import PLAIN, images

from deeplearning_tutorial.layers.activations import ACTIVATIONS, activation_name, scaled_tanh


def test_the_scaled_tanh_is_one_at_one():
    assert scaled_tanh(pt.constant([-1.0, 0.0, 1.0])).eval(mode=PLAIN) == pytest.approx([-1, 0, 1], abs=1e-4)


def test_files_hold_an_activation_by_its_name_or_by_where_it_is_defined():
    assert [activation_name(each) for each in ACTIVATIONS.values()] == list(ACTIVATIONS)
    assert activation_name(images) == "small_convolutions.images"
