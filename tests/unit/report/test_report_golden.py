"""The text formats, word for word. ``golden_reports.py`` says how to write the files anew."""

import json

import pytest
from golden_reports import FILES, GOLDEN, golden_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return golden_texts(tmp_path_factory.mktemp("golden") / "study")


@pytest.mark.parametrize("name", ["terminal", "markdown", "junit"])
def test_report_is_the_golden_one(texts, name):
    assert texts[name] == (GOLDEN / FILES[name]).read_text(encoding="utf-8")


def test_json_report_is_the_golden_one(texts):
    # Unrounded numbers differ in their last digits from one processor to the next.
    def parse(text):
        return json.loads(text, parse_float=lambda digits: f"{float(digits):.9g}")

    assert parse(texts["json"]) == parse((GOLDEN / FILES["json"]).read_text(encoding="utf-8"))
