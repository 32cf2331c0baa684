import os
import re
import stat
import zipfile

import numpy as np
import pytensor
import pytest

from deeplearning_tutorial.files import atomic
from deeplearning_tutorial.training.parameters import (
    check_save_path,
    copy_parameters,
    json_array,
    load_parameters,
    named_parameters,
    read_metadata,
    save_parameters,
)


class Layer:
    def __init__(self, scale):
        W = scale * np.arange(6, dtype="float32").reshape(2, 3)
        self.W = pytensor.shared(W, name="W")
        self.b = pytensor.shared(np.full(3, scale, "float32"), name="b")
        self.params = [self.W, self.b]


@pytest.fixture
def model():
    return named_parameters(lower=Layer(1.0), upper=Layer(0.5))


def values(model):
    return {name: variable.get_value().tolist() for name, variable in model.items()}


def test_parameters_are_named_after_layer_and_variable_in_order():
    lower, upper = Layer(1.0), Layer(0.5)
    named = named_parameters(lower=lower, upper=upper)
    assert list(named) == ["lower.W", "lower.b", "upper.W", "upper.b"]
    assert list(named.values()) == [*lower.params, *upper.params]


def test_a_copy_does_not_follow_the_variable(model):
    copy = copy_parameters(model)
    model["lower.b"].set_value(np.zeros(3, "float32"))
    assert copy["lower.b"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("as_arrays", [False, True])
def test_what_was_saved_is_loaded_bitwise(tmp_path, model, as_arrays):
    before = values(model)
    save_parameters(tmp_path / "m.npz", copy_parameters(model) if as_arrays else model)
    for variable in model.values():
        variable.set_value(variable.get_value() * 0)
    load_parameters(str(tmp_path / "m.npz"), model)
    assert values(model) == before


def test_the_file_is_an_npz_without_pickles(tmp_path, model):
    save_parameters(tmp_path / "m.npz", model)
    with np.load(tmp_path / "m.npz", allow_pickle=False) as file:
        assert {name: file[name].dtype for name in file.files} == dict.fromkeys(model, np.dtype("float32"))
        np.testing.assert_array_equal(file["upper.W"], [[0, 0.5, 1], [1.5, 2, 2.5]])


def test_values_are_cast_to_the_models_precision(tmp_path, model):
    doubles = {name: value.astype("float64") / 3 for name, value in copy_parameters(model).items()}
    save_parameters(tmp_path / "m.npz", doubles)
    load_parameters(tmp_path / "m.npz", model)
    assert model["lower.W"].get_value().dtype == "float32"
    np.testing.assert_array_equal(model["lower.b"].get_value(), np.full(3, 1 / 3).astype("float32"))


def test_a_saved_model_replaces_an_older_one_and_leaves_nothing_beside_it(tmp_path, model):
    save_parameters(tmp_path / "m.npz", model)
    model["lower.b"].set_value(np.full(3, 9, "float32"))
    save_parameters(tmp_path / "m.npz", model)
    assert os.listdir(tmp_path) == ["m.npz"]
    with np.load(tmp_path / "m.npz") as file:
        assert file["lower.b"].tolist() == [9, 9, 9]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_saved_model_has_the_permissions_of_any_new_file(tmp_path, model):
    (tmp_path / "other").touch()
    save_parameters(tmp_path / "m.npz", model)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "m.npz")]
    assert modes[0] == modes[1]


def fails_halfway(file, **arrays):
    file.write(b"PK half an archive")
    raise OSError(28, "No space left on device")


def is_interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "owner, name, failure, error",
    [
        (np, "savez", fails_halfway, OSError),
        (os, "replace", is_interrupted, KeyboardInterrupt),
        (os, "fsync", is_interrupted, KeyboardInterrupt),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_whole_and_no_other(
    tmp_path, monkeypatch, model, owner, name, failure, error
):
    save_parameters(tmp_path / "m.npz", model)
    before = (tmp_path / "m.npz").read_bytes()
    model["lower.b"].set_value(np.full(3, 9, "float32"))
    monkeypatch.setattr(owner, name, failure)
    with pytest.raises(error):
        save_parameters(tmp_path / "m.npz", model)
    assert os.listdir(tmp_path) == ["m.npz"]
    assert (tmp_path / "m.npz").read_bytes() == before


def test_the_file_gets_its_name_only_once_it_is_whole(tmp_path, monkeypatch, model):
    seen = []

    def replace(source, target):
        with np.load(source) as file:
            seen.append((sorted(file.files), target.exists(), source.parent))

    monkeypatch.setattr(os, "replace", replace)
    save_parameters(tmp_path / "m.npz", model)
    assert seen == [(sorted(model), False, tmp_path)]


METADATA = {"script": "mlp", "arguments": {"nkerns": [2, 3], "learning_rate": 0.1}}


def test_how_a_model_was_made_is_kept_beside_it_and_does_not_matter_to_loading(tmp_path, model):
    before = values(model)
    save_parameters(tmp_path / "m.npz", model, metadata=METADATA)
    assert read_metadata(tmp_path / "m.npz") == METADATA
    for variable in model.values():
        variable.set_value(variable.get_value() * 0)
    load_parameters(tmp_path / "m.npz", model)
    assert values(model) == before


def test_a_model_that_says_nothing_about_itself_is_no_error(tmp_path, model):
    save_parameters(tmp_path / "m.npz", model)
    assert read_metadata(tmp_path / "m.npz") is None


@pytest.mark.parametrize("about", [np.zeros(3), np.array(123), json_array([1]), json_array({})[:1]])
def test_a_damaged_account_is_refused_by_name(tmp_path, about):
    np.savez(tmp_path / "m.npz", about=about)
    with pytest.raises(ValueError, match="m.npz is damaged .*; use a file that a script saved"):
        read_metadata(tmp_path / "m.npz")


def refused(path, model):
    """The message with which loading is refused, having changed nothing."""
    before = values(model)
    with pytest.raises(ValueError) as caught:
        load_parameters(path, model)
    assert values(model) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_other_names_than_the_models_are_listed_beside_them(tmp_path, model):
    stored = copy_parameters(model)
    stored["top.W"] = stored.pop("upper.W")
    save_parameters(tmp_path / "m.npz", stored)
    message = refused(tmp_path / "m.npz", model)
    assert "it holds lower.W, lower.b, upper.b, top.W" in message
    assert "the model has lower.W, lower.b, upper.W, upper.b;" in message
    np.savez(tmp_path / "empty.npz")
    assert "it holds nothing, the model has" in refused(tmp_path / "empty.npz", model)


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_a_name_too_few_or_too_many_is_refused(tmp_path, model, change):
    stored = copy_parameters(model)
    if change == "fewer":
        del stored["lower.b"]
    else:
        stored["lower.c"] = np.zeros(3)
    save_parameters(tmp_path / "m.npz", stored)
    assert "use a file that the same script saved" in refused(tmp_path / "m.npz", model)


@pytest.mark.parametrize(
    "value, told",
    [
        (np.zeros((3, 2)), "float64 of shape (3, 2)"),
        (np.zeros(6), "float64 of shape (6,)"),
        (np.zeros((2, 3), "int64"), "int64 of shape (2, 3)"),
        (np.zeros((2, 3), "complex64"), "complex64 of shape (2, 3)"),
    ],
)
def test_another_shape_or_kind_of_number_is_told_with_the_one_needed(tmp_path, model, value, told):
    # The last to be looked at: those before it fit and must not be set all the same.
    stored = {name: other + 1 for name, other in copy_parameters(model).items()} | {"upper.W": value}
    save_parameters(tmp_path / "m.npz", stored)
    message = refused(tmp_path / "m.npz", model)
    assert f"upper.W is {told}, the model's is floating point of shape (2, 3)" in message
    assert "build the model with the sizes that the file was saved with" in message


def write_npy(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def write_objects(path):
    np.savez(path, **{"lower.W": np.array([print], dtype=object)})


def write_raw_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("lower.W", "lower.b", "upper.W", "upper.b"):
            archive.writestr(f"{name}.npy", b"no array")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 but no archive"),
        lambda path: path.write_text("W = 1"),
        write_npy,
        write_objects,
        write_raw_member,
    ],
)
def test_a_file_that_is_no_saved_model_is_refused_by_name(tmp_path, model, write):
    write(tmp_path / "m.npz")
    assert re.search("not a saved model|does not fit", refused(tmp_path / "m.npz", model))


def test_a_saved_model_that_is_cut_short_or_damaged_is_refused(tmp_path, model):
    save_parameters(tmp_path / "whole.npz", model)
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "m.npz"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert "is not a saved model" in refused(path, model)
    # Wherever a byte is changed, the values are refused or, where it meant nothing, the very same.
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        before = values(model)
        try:
            load_parameters(path, model)
        except ValueError as error:
            assert str(path) in str(error)
        assert values(model) == before


def test_a_missing_file_is_a_file_not_found_error(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        load_parameters(tmp_path / "absent.npz", model)


@pytest.mark.parametrize("name", ["model", "model.pkl", "model.npz.gz", ".npz"])
def test_a_name_without_the_ending_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="does not end in .npz.*add the ending") as caught:
        check_save_path(str(tmp_path / name))
    assert f"save={str(tmp_path / name)!r}" in str(caught.value)


def test_a_missing_folder_is_named(tmp_path, model):
    for refuse in (check_save_path, lambda path: save_parameters(path, model)):
        with pytest.raises(FileNotFoundError) as caught:
            refuse(tmp_path / "absent" / "m.npz")
        assert f"there is no folder {str(tmp_path / 'absent')!r}; create it first" in str(caught.value)


def test_a_folder_of_the_files_name_is_refused(tmp_path):
    (tmp_path / "m.npz").mkdir()
    with pytest.raises(PermissionError, match="m.npz.*choose another place"):
        check_save_path(tmp_path / "m.npz")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(path, mode, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match="m.npz.*choose another place"):
        check_save_path(tmp_path / "m.npz")


def test_a_good_place_comes_back_as_a_path_and_is_not_touched(tmp_path):
    assert check_save_path(str(tmp_path / "m.npz")) == tmp_path / "m.npz"
    assert os.listdir(tmp_path) == []


def test_a_model_that_unpacks_to_more_than_the_file_is_refused(tmp_path, model):
    stored = copy_parameters(model) | {"lower.W": np.zeros((1000, 1000))}
    np.savez_compressed(tmp_path / "m.npz", **stored)
    assert "is not a saved model (it unpacks to 8000048 bytes" in refused(tmp_path / "m.npz", model)


def test_a_long_list_of_names_is_cut_short(tmp_path, model):
    save_parameters(tmp_path / "m.npz", {f"layer{n}.W": np.zeros(0) for n in range(1000)})
    assert len(refused(tmp_path / "m.npz", model)) < 1500
