import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

# The pages are not part of the package.
sys.path.append(str(Path(__file__).parents[2]))

from docs.pages import numbers_in, place, read_page, run
from docs.walkthrough import examples, pictures, quotes

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "docs" / "walkthrough.md", ROOT / "docs" / "walkthrough.zh.md"
BLOCKS, ROWS, _, SECTIONS = read_page(ENGLISH)


def images_in(path):
    return re.findall(r"^!\[[^]]+\]\((.*)\)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS[1:], ids=place)
def test_every_python_block_runs_after_the_first_and_asserts_something(block):
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(block.code)))
    namespace = {}
    run(BLOCKS[0], namespace)
    run(block, namespace)


def test_tables_are_those_of_the_examples():
    assert [re.sub(" +", " ", row.text) for row in ROWS] == quotes.tables()


def test_every_number_in_the_text_is_one_of_the_examples():
    # The last section lists papers.
    texts = list(SECTIONS.values())[1:-1]
    for text, known in zip(texts, quotes.numbers(), strict=True):
        for written in numbers_in(text):
            digits = len(written.partition(".")[2])
            assert any(f"{number:,.{digits}f}" == written for number in known), written


def test_numbers_of_code_links_papers_and_layers_are_not_taken_for_quoted_ones():
    text = "C1 of LeNet-5 (1998): 1,516 in `x[3]`, 0.91 % and 5 × 5 [here](4.md).\n\n    7 of code\n第575个"
    assert numbers_in(text) == ["1,516", "0.91", "5", "5", "575"]


def test_the_translation_has_the_same_code_tables_numbers_and_pictures():
    blocks, rows, _, sections = read_page(CHINESE)
    assert [ast.dump(ast.parse(b.code)) for b in blocks] == [ast.dump(ast.parse(b.code)) for b in BLOCKS]
    assert [row.text for row in rows] == [row.text for row in ROWS]
    assert images_in(CHINESE) == images_in(ENGLISH)
    for english, chinese in zip(SECTIONS.values(), sections.values(), strict=True):
        assert sorted(numbers_in(chinese)) == sorted(numbers_in(english))


def test_the_page_shows_every_picture():
    assert sorted(images_in(ENGLISH)) == sorted(
        f"walkthrough/{pictures.path_of(name).name}" for name in pictures.PICTURES
    )


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_picture_shows_what_the_example_gives(name):
    picture = pictures.path_of(name).read_bytes()
    assert pictures.digest(name).encode() in picture, "draw it anew: python -m docs.walkthrough.pictures"
    assert len(picture) < 60_000


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_picture_can_be_drawn(name):
    assert pictures.digest(name).encode() in pictures.render(name)


def test_lenet_has_the_shapes_that_its_layers_compute():
    shapes = {layer.name: layer.shape for layer in examples.lenet()}
    for name, maps in examples.feature_maps().items():
        if name != "image":
            assert maps.shape[1:] == shapes[name][1:]
    layer0, layer1 = examples.lenet_layers()
    assert (layer0.output.type.shape, layer1.output.type.shape) == ((1, *shapes["S2"]), (1, *shapes["S4"]))
    parameters = {layer.name: layer.parameters for layer in examples.lenet()}
    for name, layer in (("C1", layer0), ("C3", layer1)):
        assert sum(param.get_value().size for param in layer.params) == parameters[name]


@pytest.mark.parametrize("layers", [("C1",), ("C1", "S2"), ("C1", "S2", "C3"), ("C1", "S2", "C3", "S4")])
def test_the_receptive_field_is_what_a_unit_sees_from_above(layers):
    # Downwards from one unit: a filter adds its length but one, a window doubles.
    seen = 1
    for name in reversed(layers):
        seen = seen + 4 if name.startswith("C") else 2 * seen
    assert {layer.name: layer.sees for layer in examples.lenet()}[layers[-1]] == seen


def test_lenet5_has_the_papers_totals():
    layers = examples.lenet5()
    assert sum(layer.parameters for layer in layers) == 60_000
    assert sum(layer.connections for layer in layers) == 340_908


def test_the_matrix_product_is_the_convolution():
    product = examples.matrix_product()
    np.testing.assert_array_equal(product["P"], product["convolved"].reshape(2, 4))


def test_a_run_on_few_digits_ends_when_patience_does():
    run = examples.small_run()
    trained = 25 * len(run["curve"])
    assert trained <= run["patience"][-1, 1] < trained + 25
    assert run["epochs"] == len(run["curve"]) + 1
