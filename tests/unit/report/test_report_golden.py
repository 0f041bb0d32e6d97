"""The text formats, word for word. ``golden_reports.py`` says how to write the files anew."""

import json

import pytest
from golden_reports import FILES, GOLDEN, OBSERVED_FILES, golden_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return golden_texts(tmp_path_factory.mktemp("golden"))


WORD_FOR_WORD = [file for file in (*FILES.values(), *OBSERVED_FILES.values()) if "json" not in file]


@pytest.mark.parametrize("file", WORD_FOR_WORD)
def test_report_is_the_golden_one(texts, file):
    assert texts[file] == (GOLDEN / file).read_text(encoding="utf-8")


def test_json_report_is_the_golden_one(texts):
    # Unrounded numbers differ in their last digits from one processor to the next.
    def parse(text):
        return json.loads(text, parse_float=lambda digits: f"{float(digits):.9g}")

    assert parse(texts[FILES["json"]]) == parse(
        (GOLDEN / FILES["json"]).read_text(encoding="utf-8")
    )
