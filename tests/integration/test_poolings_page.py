import json

from docs import poolings
from docs.pages import read_page, run


def test_the_block_runs():
    [block], *_ = read_page(poolings.PAGE)
    namespace = {}
    run(block, namespace)
    assert namespace["layer"].output.type.shape == (500, 20, 11, 11)


def test_the_table_is_that_of_the_results():
    text = poolings.PAGE.read_text(encoding="utf-8")
    results = json.loads(poolings.RESULTS.read_text()) if poolings.RESULTS.exists() else {}
    assert results.keys() <= poolings.RUNS.keys()
    assert poolings.page(text, results) == text


def test_a_result_makes_a_row_and_no_result_says_so():
    rows = poolings.table({"l2": {"best_validation_error": 0.0123, "test_error": 0.0145}}).splitlines()
    assert "| L2 | 1.23 % | 1.45 % | `--pooling l2` |" in rows
    assert "| sum | not yet run |  | `--pooling sum` |" in rows
