"""What each format promises besides its words, with names that try to break out of it."""

import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_cases import HOSTILE_NAMES, finding, mixed_verdict, named_study, summary_of, verdict
from rich.cells import cell_len
from rich.console import Console

from scaleproof.errors import UsageError
from scaleproof.report import json_report, junit, markdown, terminal
from scaleproof.report.formats import FORMATS, render_text
from scaleproof.report.summary import summarise
from scaleproof.verdict.answers import Decision

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, *pair) for pair in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, *pair) for pair in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    study = named_study(tmp_path_factory.mktemp("hostile") / "study", HOSTILE_NAMES)
    return summarise(study, mixed_verdict(" ".join(HOSTILE_NAMES)))


@pytest.fixture(scope="module")
def page(hostile):
    return Page(render_text(hostile, "html"))


def test_html_runs_and_loads_nothing(hostile, page):
    text = render_text(hostile, "html")
    assert "script" not in page.tags and "iframe" not in page.tags
    assert not re.search(r"https?://", text)
    assert "url(" not in text and "@import" not in text
    assert not [a for a in page.attributes if a[1] in ("src", "onload", "onclick", "style")]
    assert all(value == "#next" for _, name, value in page.attributes if name == "href")
    policies = [value for _, name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in policy and "script" not in policy for policy in policies)


def test_html_ids_are_unique_and_references_resolve(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labels = [
        v for _, name, value in page.attributes if name == "aria-labelledby" for v in value.split()
    ]
    assert labels and set(labels) <= set(ids)


def test_html_charts_scale_and_are_described(page):
    charts = [a for a in page.attributes if a[0] == "svg" and a[1] == "role" and a[2] == "img"]
    assert len(charts) == 8
    assert page.tags.count("title") == 9 and page.tags.count("desc") == 8
    assert not [a for a in page.attributes if a[0] == "svg" and a[1] in ("width", "height")]


def test_html_tables_name_their_rows_and_columns(page):
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert scopes.count("col") and scopes.count("row")
    assert page.tags.count("th") == len(scopes)


def test_html_shows_hostile_names_as_text(page):
    text = " ".join(page.texts)
    assert "<script>alert('x')</script>" in text
    assert "[red]rich[/red] {{ jinja }}" in text
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text


def test_html_puts_the_verdict_before_the_evidence_and_the_environment_last(hostile):
    text = render_text(hostile, "html")
    places = [
        text.index(part)
        for part in (
            'class="verdict',
            'class="tiles"',
            "<h2>Evidence",
            'id="next"',
            "How it was run",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("decision", Decision)
def test_html_marks_the_decision_in_words(tmp_path, decision):
    page = Page(render_text(summary_of(tmp_path, verdict(decision=decision)), "html"))
    assert ("section", "class", f"verdict {decision.value}") in page.attributes
    assert decision.value.capitalize() in " ".join(page.texts)


def test_terminal_fits_80_columns_without_control_sequences(hostile):
    text = render_text(hostile, "terminal")
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert "[red]rich[/red]" in text


def test_terminal_begins_with_the_verdict_and_ends_with_what_to_do(hostile):
    lines = render_text(hostile, "terminal").splitlines()
    assert lines[0].startswith("REJECT  Recall of")
    assert any(line.startswith("2. Run again with --seeds 5.") for line in lines[-3:])


def test_terminal_gives_a_passed_check_one_line(tmp_path):
    passed = finding(sentence="A long sentence, " * 20)
    lines = render_text(summary_of(tmp_path, verdict(findings=(passed,))), "terminal").splitlines()
    index = lines.index("Checks that passed")
    assert lines[index + 1].startswith("accuracy-drop  A long") and lines[index + 1].endswith("…")
    assert lines[index + 2].strip() == ""


def test_html_keeps_a_number_and_its_unit_together(tmp_path):
    judged = verdict(headline="Adopt 2 devices (ddp): 45 % less time, 3 seeds.")
    text = render_text(summary_of(tmp_path, judged), "html")
    assert "45\N{NO-BREAK SPACE}% less time, 3 seeds." in text


def test_terminal_colours_the_verdict(tmp_path):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    terminal.render(summary_of(tmp_path), console)
    assert file.getvalue().startswith("\x1b[1;32mADOPT")


def test_terminal_with_an_ascii_pipe(hostile):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.render(hostile, Console(file=file, width=80))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "-10.0 pp" in text and "1.82x" in text


def test_markdown_keeps_hostile_names_inside_their_cells(hostile):
    text = markdown.render(hostile)
    assert "<script" not in text and "\x1b" not in text
    assert "@team" not in text  # would call a team to the pull request
    rows = [line for line in text.splitlines() if line.startswith("|")]
    by_class = [row for row in rows if "quoted" in row and "pp" in row]
    assert len(by_class) == 1
    assert len(re.findall(r"(?<!\\)\|", by_class[0])) == 10
    allowed = {"details", "summary"}
    assert set(re.findall(r"</?(\w+)", text)) <= allowed


def test_json_is_complete_and_has_no_nan(hostile):
    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    report = json.loads(json_report.render(hostile), parse_constant=refuse)
    assert report["report_version"] == 1
    assert report["quality"]["class_names"] == list(HOSTILE_NAMES)
    assert report["verdict"]["decision"] == "reject"
    measurement = report["verdict"]["findings"][1]["measurement"]
    assert measurement == {"low": None, "high": None}
    assert report["timing"]["speed_up"]["speed_up"] == hostile.timing.speed_up.speed_up


def test_junit_is_green_only_on_adopt(tmp_path, hostile):
    def suite(summary):
        return ElementTree.fromstring(junit.render(summary)).find("testsuite")

    green = suite(summary_of(tmp_path))
    assert (green.get("failures"), green.get("errors"), green.get("skipped")) == ("0", "0", "0")
    red = suite(hostile)
    # recall-drop and the verdict; the check that broke and the failed runs; the other four
    assert (red.get("failures"), red.get("errors"), red.get("skipped")) == ("2", "2", "4")
    assert red.get("tests") == "9" == str(len(red.findall("testcase")))
    failure = red.find("testcase[@name='recall-drop']/failure")
    assert "To do: Lower the learning rate" in failure.text
    assert red.find("testcase[@name='low-efficiency']/skipped") is not None


def test_junit_undecided_is_not_green(tmp_path):
    text = junit.render(summary_of(tmp_path, verdict(decision=Decision.UNDECIDED)))
    case = ElementTree.fromstring(text).find(".//testcase[@classname='verdict']")
    assert case.find("failure").get("type") == "undecided"


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'pdf', expected one of terminal, html, json"):
        render_text(summary_of(tmp_path), "pdf")
    assert FORMATS == ("terminal", "html", "json", "markdown", "junit")
