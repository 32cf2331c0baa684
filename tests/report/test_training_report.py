import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytensor
import pytest
from machine import BROWSER
from PIL import Image
from small_networks import SIZES, shapes_of

from deeplearning_tutorial.classify.classification import evaluate
from deeplearning_tutorial.classify.models import model_of
from deeplearning_tutorial.datasets import load_data, sample_path
from deeplearning_tutorial.datasets.fingerprint import data_fingerprint
from deeplearning_tutorial.report import plots, training_report
from deeplearning_tutorial.report.html import Picture, Section, Table, html_page
from deeplearning_tutorial.report.training_report import main, write_report
from deeplearning_tutorial.training.checkpoint import Checkpoint, write_checkpoint
from deeplearning_tutorial.training.results import TrainingResult, Validation

PACKAGE = Path(plots.__file__).parents[1]
PICTURES = {
    "logistic_sgd": ["confusions", "first-layer", "learning-curves", "wrong-digits"],
    "convolutional_mlp": [
        *("C1", "C3", "S2", "S4", "confusions", "digit", "first-layer", "learning-curves", "wrong-digits"),
    ],
}
PICTURES["mlp"] = PICTURES["logistic_sgd"]
PICTURES["lenet5"] = PICTURES["convolutional_mlp"]


@pytest.fixture(scope="module")
def fingerprint():
    return data_fingerprint(load_data(sample_path()))


@pytest.fixture(autouse=True)
def uncompiled():
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


def run_of(script, data, history=None):
    rng = np.random.default_rng(4)
    parameters = {
        name: rng.normal(0, 0.2, shape).astype("float32")
        for name, shape in shapes_of(script).items()
    }
    if history is None:
        history = [
            Validation(1, 5, 5, 2.25, 0.5, 0.625),
            Validation(2, 5, 10, 1.5, 0.25, 0.375),
            Validation(3, 5, 15, 1.25, 0.3, None),
        ]
    result = TrainingResult(0.25, 10, 0.375, 3, 90.0, history, parameters if history else {}, (5, 1, 1))
    arguments = {"learning_rate": 0.125, "nkerns": [2, 3], "note": "<script>alert(1)</script>"}
    return Checkpoint(script, arguments, data, 15, 10000, parameters, result)


@pytest.fixture
def write(tmp_path, fingerprint):
    """Write the checkpoint of a run and return its path."""

    def write(script="logistic_sgd", data=fingerprint, **options):
        path = tmp_path / "run.npz"
        write_checkpoint(path, run_of(script, data, **options))
        return path

    return write


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("script", SIZES)
def test_the_page_contains_every_picture_beside_it_and_loads_nothing(write, tmp_path, script):
    path = write_report(write(script))
    assert path == tmp_path / "run-report" / "index.html"
    names = PICTURES[script]
    assert sorted(each.name for each in path.parent.iterdir()) == sorted(
        [*(f"{n}.png" for n in names), "index.html"]
    )
    elements = Elements(path.read_text("utf-8")).found
    embedded = []
    for tag, attributes in elements:
        assert tag not in ("script", "link", "iframe", "object", "embed") and "href" not in attributes
        if tag == "img":
            kind, data = attributes["src"].split(",")
            assert kind == "data:image/png;base64" and len(attributes["alt"]) > 15
            embedded.append(base64.b64decode(data))
    beside = [(path.parent / f"{name}.png").read_bytes() for name in names]
    assert sorted(embedded) == sorted(beside)
    for data in embedded:
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG" and image.width >= 480
            image.load()


def test_the_page_has_result_and_settings_and_escapes_them(write, sample):
    path = write_report(write())
    text = path.read_text("utf-8")
    assert "<script>" not in text
    plain = unescape(re.sub("<[^>]*>", " ", text)).replace("\xa0", " ")
    plain = " ".join(plain.split())
    run = run_of("logistic_sgd", "")
    test = evaluate(model_of(run.script, run.parameters), *sample[2])
    assert f"misclassifies {test.n_wrong} of 1000 test digits: {100 * test.error:.2f} %" in plain
    assert "test error 37.50 % (published: 7.49 %)" in plain
    assert "validation error 25.00 % (published: 7.50 %)" in plain
    assert "best iteration 10 iterations 15 epochs 3 time 1.5 minutes" in plain
    assert "learning_rate 0.125 nkerns 2, 3 note <script>alert(1)</script>" in plain


def test_the_alternative_texts_describe_the_pictures(write):
    path = write_report(write("convolutional_mlp"), digit=3)
    alts = " ".join(
        attributes["alt"] for tag, attributes in Elements(path.read_text("utf-8")).found if tag == "img"
    )
    assert "goes from 50.00 % to 30.00 %, the cost from 2.25 to 1.25" in alts and "error, 0.92 %" in alts
    assert "2 grey squares: 5x5 filters of the first convolution." in alts
    assert "2 feature maps of C1, 24x24 each. 2 feature maps of S2, 12x12 each." in alts
    assert "3 feature maps of C3, 8x8 each. 3 feature maps of S4, 4x4 each." in alts
    assert "The 20 digits misclassified with most confidence: a " in alts


def test_the_captions_of_a_lenet5_describe_its_layers(write, monkeypatch):
    settings = {"activation": "scaled_tanh", "pooling": "sum"}
    settings |= {"pool_sizes": [4, 2], "filter_sizes": [5, 3, 3]}
    before = run_of

    def run_with_settings(*args, **kwargs):
        run = before(*args, **kwargs)
        shapes = shapes_of("lenet5", pooling="sum", pool_sizes=(4, 2), filter_sizes=(5, 3, 3))
        run.result.best_parameters.update({n: np.full(s, 0.5, "float32") for n, s in shapes.items()})
        return replace(run, arguments=settings)

    monkeypatch.setitem(globals(), "run_of", run_with_settings)
    text = unescape(write_report(write("lenet5")).read_text("utf-8")).replace("\xa0", " ")
    assert "(published: 0.95 %)" in text and "25.00 %</td>" in text
    assert "convolution, bias and scaled tanh. Black is -1.7" in text
    assert "S2: 2 feature maps of 13x13, the sum of each 4x4 of the maps before" in text
    assert "S4: 3 feature maps of 5x5, the sum of each 2x2 of the maps before" in text


@pytest.mark.parametrize(
    "n, grid",
    [(1, (1, 1)), (2, (1, 2)), (7, (2, 4)), (10, (2, 5)), (20, (4, 5)), (50, (5, 10)), (500, (20, 25))],
)
def test_tiles_fill_their_grid(n, grid):
    assert plots._grid(n) == grid


def test_gaps_between_tiles_are_transparent():
    images = np.array([[[0, 0.5], [1, 0.25]], [[1, 1], [1, 1]]])
    with Image.open(io.BytesIO(plots.tiles(images, scale_each=False))) as image:
        assert image.mode == "RGBA" and image.size == (5 * 96, 2 * 96)
        pixels = np.asarray(image)[::96, ::96]
    assert pixels[..., 0].tolist() == [[0, 127, 0, 255, 255], [255, 63, 0, 255, 255]]
    assert pixels[..., 3].tolist() == [[255, 255, 0, 255, 255]] * 2


def test_a_single_validation_without_errors_is_drawn():
    result = TrainingResult(0.0, 5, 0.0, 1, 1.0, [Validation(1, 5, 5, 0.5, 0.0, 0.0)], {}, (5, 1, 1))
    with Image.open(io.BytesIO(plots.learning_curves(result, 0.92))) as image:
        assert image.format == "PNG"


def test_the_page_of_a_flawless_model_has_no_wrong_digits(write, monkeypatch):
    original = training_report.evaluate

    def flawless(model, x, y):
        return original(model, x, y).__class__(y, np.eye(10)[y])

    monkeypatch.setattr(training_report, "evaluate", flawless)
    text = write_report(write()).read_text("utf-8")
    assert "misclassifies 0 of 1000" in text and "Where it was confident" not in text


def test_a_failed_write_keeps_the_old_page(write, monkeypatch, capsys):
    path = write_report(write())
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert main([str(path.parents[1] / "run.npz")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert not [each for each in path.parent.iterdir() if each.suffix == ".part"]


def test_the_command_prints_the_path_of_the_page(write, tmp_path, capsys):
    assert main([str(write()), "--output", str(tmp_path / "elsewhere"), "--dataset", str(sample_path())]) == 0
    page = capsys.readouterr().out.splitlines()[-1]
    assert page == str(tmp_path / "elsewhere" / "index.html") and os.path.isfile(page)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--digit", "1000"], "digit=1000 is not in the test set; use one from 0 to 999"),
        (["--digit", "-1"], "digit=-1 is not"),
        (["--output", "no/folder"], "no/folder"),
        (["--dataset", "absent.npz"], "absent.npz"),
    ],
)
def test_bad_arguments_give_status_1_and_a_message(
    write, tmp_path, monkeypatch, arguments, message, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([str(write()), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["run.npz"]


def test_the_page_is_written_even_if_its_path_is_escaped_or_lost(write, tmp_path, monkeypatch):
    class Lost(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    checkpoint, buffer = write(), io.BytesIO()
    ascii_only = io.TextIOWrapper(buffer, encoding="ascii")
    for name, stream, status in [("数字", ascii_only, 0), ("lost", Lost(), 1)]:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([str(checkpoint), "--output", str(tmp_path / name)]) == status
        assert (tmp_path / name / "index.html").exists()
    assert buffer.getvalue().endswith(rb"\u6570\u5b57/index.html" + b"\n")


SETTINGS = [
    "",
    "text.usetex: True\n",
    "savefig.dpi: 20\nfigure.dpi: 20\n",
    "savefig.bbox: tight\nfont.size: 90\n",
    "figure.autolayout: True\nsavefig.format: pdf\n",
    "backend: no_such_backend\n",
]
DRAWING = """
import os, sys
from deeplearning_tutorial.report import plots
from deeplearning_tutorial.training.results import TrainingResult, Validation
result = TrainingResult(0.5, 5, 0.5, 1, 1.0, [Validation(1, 5, 5, 2.25, 0.5, 0.625)], {}, (5, 1, 1))
sys.stdout.buffer.write(plots.learning_curves(result, 7.5))
import matplotlib
assert os.environ.get("MPLBACKEND") == BACKEND
assert "matplotlib.pyplot" not in sys.modules
if "usetex" in SETTING:
    assert matplotlib.rcParams["text.usetex"]
if "dpi" in SETTING:
    assert matplotlib.rcParams["savefig.dpi"] == 20
if BACKEND == "svg":
    assert matplotlib.get_backend() == "svg"
"""


@pytest.mark.parametrize(
    "setting, backend",
    [
        *((setting, None) for setting in SETTINGS),
        ("", "svg"),
        ("", "no_such_backend"),
        ("", "module://matplotlib_inline.backend_inline"),
    ],
)
def test_pictures_do_not_depend_on_the_users_settings_or_change_them(tmp_path, setting, backend):
    (tmp_path / "matplotlibrc").write_text(setting)
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "MATPLOTLIBRC": str(tmp_path)}
    env.pop("MPLBACKEND", None)
    if backend is not None:
        env["MPLBACKEND"] = backend
    program = f"BACKEND, SETTING = {backend!r}, {setting!r}\n{DRAWING}"
    ended = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr.decode()
    with Image.open(io.BytesIO(ended.stdout)) as image:
        # 7 x 6 inches at 120 dpi.
        assert image.size == (840, 720)


def test_a_run_on_other_data_is_rejected_with_both_fingerprints(write, tmp_path):
    with pytest.raises(
        ValueError, match="run.npz was trained on data other than .*: other there, 3000 .* here"
    ):
        write_report(write(data="other"), dataset=sample_path())
    assert os.listdir(tmp_path) == ["run.npz"]


def test_a_run_without_a_validation_is_rejected(write):
    with pytest.raises(ValueError, match="run.npz has no validation yet; continue training"):
        write_report(write(history=[]))


def test_a_saved_model_is_rejected(tmp_path):
    np.savez(tmp_path / "m.npz", **{"classifier.W": np.zeros((784, 10)), "classifier.b": np.zeros(10)})
    with pytest.raises(ValueError, match="m.npz is not a checkpoint"):
        write_report(tmp_path / "m.npz")


def test_without_matplotlib_the_message_says_how_to_install_it(write, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(write())]) == 1
    assert re.fullmatch("the report needs matplotlib.*pip install matplotlib\n", capsys.readouterr().err)


# Embeds the page at the width of a phone or a desktop screen, and measures it once it is loaded.
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><pre>not loaded</pre>
<script>
function measure(frame) {{
    const inner = frame.contentDocument, root = inner.documentElement;
    document.querySelector("pre").textContent = JSON.stringify({{
        title: inner.title, width: root.clientWidth, content: root.scrollWidth,
        images: [...inner.images].map(image => [image.naturalWidth, image.naturalHeight, image.clientWidth]),
        fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
            .filter(name => !name.startsWith("data:")),
        headings: [...inner.querySelectorAll("h2")].map(heading => heading.clientHeight),
    }});
}}
</script>
<iframe style="border: 0; width: {width}px; height: 900px" onload="measure(this)" srcdoc="{page}"></iframe>"""


@pytest.mark.needs("browser")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_renders_the_page_without_horizontal_scrolling(write, tmp_path, width):
    path = write_report(write("convolutional_mlp"))
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(width=width, page=escape(path.read_text("utf-8"))), "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
    ]
    command += ["--virtual-time-budget=20000", "--dump-dom", harness.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    measured = json.loads(unescape(re.search("<pre>(.*?)</pre>", ended.stdout, re.DOTALL)[1]))
    assert "CONSOLE" not in ended.stderr
    assert measured["title"] == "LeNet on MNIST"
    assert measured["content"] <= measured["width"] <= width
    assert len(measured["images"]) == len(PICTURES["convolutional_mlp"])
    for natural_width, natural_height, client_width in measured["images"]:
        assert natural_width >= 480 and natural_height > 0 and 0 < client_width <= width
    assert measured["fetched"] == []
    assert len(measured["headings"]) == 6 and min(measured["headings"]) > 0


def test_a_page_escapes_all_text():
    evil = "<b>\"'&"
    picture = Picture("p", b"png", evil, evil)
    text = html_page(evil, evil, [Section(evil, evil, (picture, Table({evil: evil})))])
    assert "<b>" not in text and text.count("&lt;b&gt;") == 9
    assert 'alt="&lt;b&gt;&quot;&#x27;&amp;"' in text and 'src="data:image/png;base64,cG5n"' in text
