import optuna
import pytest

from deeplearning_tutorial.tune.search_space import (
    Choices,
    Range,
    as_text,
    merge,
    parse_searches,
    read_space,
    suggest,
)

DEFAULTS = {"rate": 0.1, "n_hidden": 84, "sizes": (5, 5, 5), "kind": "tanh", "quiet": False}
WITH_NONE = DEFAULTS | {"scaling": None}
SPACES = [
    ("rate=0.01:0.5", "rate = {low = 0.01, high = 0.5}", "rate", Range(0.01, 0.5)),
    ("rate=log:0.01:1", "rate = {low = 0.01, high = 1, log = true}", "rate", Range(0.01, 1.0, log=True)),
    ("n-hidden=4:10:2", "n_hidden = {low = 4, high = 10, step = 2}", "n_hidden", Range(4, 10, step=2)),
    ("rate=0.1:0.7:0.2", "rate = {low = 0.1, high = 0.7, step = 0.2}", "rate", Range(0.1, 0.7, step=0.2)),
    ("rate=1, 0.5", "rate = {choices = [1, 0.5]}", "rate", Choices((1.0, 0.5))),
    ("kind=tanh,relu", 'kind = {choices = ["tanh", "relu"]}', "kind", Choices(("tanh", "relu"))),
    ("quiet=true,False", "quiet = {choices = [true, false]}", "quiet", Choices((True, False))),
    ("sizes.1=3,5", "sizes.1 = {choices = [3, 5]}", "sizes.1", Choices((3, 5))),
    ("sizes.2=3:7", "[sizes.2]\nlow = 3\nhigh = 7", "sizes.2", Range(3, 7)),
    (
        "sizes=5 3 6, 7 5 4",
        "sizes = {choices = [[5, 3, 6], [7, 5, 4]]}",
        "sizes",
        Choices(((5, 3, 6), (7, 5, 4))),
    ),
]


@pytest.mark.parametrize("text, toml, name, domain", SPACES)
def test_the_command_line_and_a_file_give_the_same_space(tmp_path, text, toml, name, domain):
    (tmp_path / "space.toml").write_text(toml)
    for space in (parse_searches([text], DEFAULTS), read_space(tmp_path / "space.toml", DEFAULTS)):
        assert space == {name: domain}
        values = domain.values if isinstance(domain, Choices) else [domain.low, domain.high]
        expected = type(DEFAULTS[name]) if "." not in name else int
        assert {type(value) for value in values} == {expected}
        # The text that a study stores parses to the same domain.
        assert parse_searches([f"{name}={domain}"], DEFAULTS) == space


@pytest.mark.parametrize(
    "text, message",
    [
        ("speed=1,2", "'speed' is not a parameter that can be searched; use rate, n_hidden, sizes, kind"),
        ("rate", "'rate' has no values"),
        ("rate=", "'rate=' has no values"),
        ("rate=a,1", "'a' is not of type float; use e.g. rate=0.1"),
        ("rate=nan,1", "nan is not of type float"),
        ("n_hidden=1.5:3", "'1.5' is not of type int; use e.g. n_hidden=84"),
        ("n_hidden=3:3", "from 3 to 3"),
        ("n_hidden=1:2:3:4", "a range is LOW:HIGH"),
        ("n_hidden=1:9:0", "the step 0 is not allowed"),
        ("n_hidden=64:250:32", "steps of 32 from 64 do not reach 250; end e.g. at 256"),
        ("n_hidden=1:2:5", "end e.g. at 6"),
        ("rate=0.1:0.45:0.1", "steps of 0.1 from 0.1 do not reach 0.45; end e.g. at 0."),
        ("rate=log:0:1", "must start above 0, not at 0.0"),
        ("rate=log:1:2:0.1", "the step 0.1 is not allowed"),
        ("sizes=5 5", "'5 5' needs 3 elements; use e.g. sizes=5 5 5"),
        ("sizes.3=1,2", "sizes has 3 elements; use sizes.0 to sizes.2"),
        ("rate.0=1,2", "rate has 0 elements; leave out the dot"),
        ("kind=a,a", "a choice occurs twice"),
        ("quiet=1:2", "'1:2' is not of type bool"),
    ],
)
def test_an_invalid_search_is_rejected_with_the_reason(text, message):
    with pytest.raises(ValueError) as caught:
        parse_searches([text], DEFAULTS)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "toml, message",
    [
        ("rate = 1", "rate: 1 is not a table"),
        ("rate = {low = 1}", "rate: it has low; give low and high"),
        ("rate = {}", "rate: it has nothing"),
        ("rate = {low = 1, high = 2, log = 1}", "rate: log is 1; use true or false"),
        ("rate = {low = 1, high = 2, steps = 1}", "rate: it has low, high, steps"),
        ("rate = {choices = []}", "rate: there are no choices"),
        ("n_hidden = {choices = [true]}", "n_hidden: True is not of type int"),
        ('kind = {low = "a", high = "b"}', "kind: only numbers can have a range"),
        ("sizes = {choices = [[5, 5]]}", "sizes: [5, 5] needs 3 elements"),
        ("rate = ", "is not a TOML file"),
    ],
)
def test_an_invalid_file_is_rejected_with_the_reason(tmp_path, toml, message):
    (tmp_path / "space.toml").write_text(toml)
    with pytest.raises(ValueError) as caught:
        read_space(tmp_path / "space.toml", DEFAULTS)
    assert message in str(caught.value) and "space.toml" in str(caught.value)


def test_a_parameter_can_be_searched_only_once():
    with pytest.raises(ValueError, match="names rate twice"):
        parse_searches(["rate=1,2", "rate=3,4"], DEFAULTS)
    with pytest.raises(ValueError, match="rate is searched in the file and by --search"):
        merge({"rate": Range(1.0, 2.0)}, {"rate": Range(1.0, 3.0)})
    with pytest.raises(ValueError, match="sizes and sizes.0 are both searched"):
        merge({"sizes": Choices(((1, 2, 3),))}, {"sizes.0": Choices((1, 2))})


class First:
    """A trial that chooses the first value."""

    def suggest_int(self, name, low, high, *, step, log):
        return low

    def suggest_float(self, name, low, high, *, step, log):
        return low

    def suggest_categorical(self, name, choices):
        return choices[0]


def test_suggest_replaces_arguments_with_the_chosen_values():
    space = parse_searches(["rate=0.5:1", "sizes.0=7,9", "sizes.2=3:4", "n_hidden=9:10"], DEFAULTS)
    given = {"sizes": (1, 2, 3), "kind": "relu"}
    assert suggest(space, First(), given) == {"sizes": (7, 2, 3), "kind": "relu", "rate": 0.5, "n_hidden": 9}
    assert given == {"sizes": (1, 2, 3), "kind": "relu"}
    space = parse_searches(["sizes=7 8 9,1 2 3"], DEFAULTS)
    assert suggest(space, First(), {}) == {"sizes": (7, 8, 9)}


def test_none_is_a_choice_if_it_is_the_default(tmp_path):
    (tmp_path / "space.toml").write_text('scaling = {choices = ["none", "unit"]}')
    for space in (
        parse_searches(["scaling=none,unit"], WITH_NONE),
        read_space(tmp_path / "space.toml", WITH_NONE),
    ):
        assert space == {"scaling": Choices((None, "unit"))} and str(space["scaling"]) == "none,unit"
        assert suggest(space, First(), {}) == {"scaling": None}
    assert parse_searches(["kind=none,relu"], DEFAULTS) == {"kind": Choices(("none", "relu"))}


def test_optuna_stores_none_as_text():
    trial = optuna.trial.FixedTrial({"scaling": "none"})
    assert suggest({"scaling": Choices((None, "unit"))}, trial, {}) == {"scaling": None}
    assert trial.distributions["scaling"].choices == ("none", "unit")


def test_values_are_formatted_as_flags_accept_them():
    assert [as_text(value) for value in (1.5, (5, 7), True, "relu")] == ["1.5", "5 7", "true", "relu"]
