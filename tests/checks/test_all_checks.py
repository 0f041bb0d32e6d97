import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import scaleproof.checks
from scaleproof.checks.all_checks import ALL_CHECKS, check_named, page_of
from scaleproof.checks.check import PAGE_SECTIONS, AbstractCheck, Question
from scaleproof.errors import UsageError

FOLDER = Path(scaleproof.checks.__file__).parent
each_check = pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.name)
Check = type[AbstractCheck[Any]]


@each_check
def test_it_is_final_frozen_and_has_a_default_for_every_threshold(check: Check) -> None:
    assert getattr(check, "__final__", False)
    assert dataclasses.is_dataclass(check)
    assert check.__dataclass_params__.frozen
    assert dataclasses.asdict(check()) is not None


@each_check
def test_its_name_is_that_of_its_file_and_its_class(check: Check) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", check.name)
    assert Path(inspect.getfile(check)).stem == check.name.replace("-", "_")
    assert check.__name__ == "".join(word.capitalize() for word in check.name.split("-"))


@each_check
def test_its_page_has_all_sections_in_order_each_with_text(check: Check) -> None:
    page = page_of(check.name)
    title, *_ = page.splitlines()
    parts = re.split(rf"^({'|'.join(PAGE_SECTIONS)})$", page, flags=re.MULTILINE)

    assert title.endswith(".")
    assert tuple(parts[1::2]) == PAGE_SECTIONS
    assert all(len(text.strip()) > 40 for text in parts[2::2])


@each_check
def test_its_page_names_every_threshold_of_its_own(check: Check) -> None:
    page = page_of(check.name)
    own = {f.name for f in dataclasses.fields(check)} - {"confidence", "allow_single_seed"}
    missing = [name for name in own if f"`{name}`" not in page]

    assert not missing


@each_check
def test_an_inherited_method_is_not_overridden_and_both_are_there(check: Check) -> None:
    assert check.__mro__[1] is AbstractCheck
    assert not inspect.isabstract(check)


def test_names_are_unique_and_no_question_is_left_out() -> None:
    names = [check.name for check in ALL_CHECKS]

    assert len(set(names)) == len(names)
    assert {check.question for check in ALL_CHECKS} == set(Question)


def test_no_check_in_the_folder_is_forgotten() -> None:
    has_check = [
        path.stem
        for path in FOLDER.glob("*.py")
        if re.search(r"^class \w+\(AbstractCheck\[", path.read_text(), flags=re.MULTILINE)
    ]

    assert sorted(has_check) == sorted(check.name.replace("-", "_") for check in ALL_CHECKS)


def test_a_check_is_found_by_its_name() -> None:
    assert check_named("accuracy-paradox").__name__ == "AccuracyParadox"


def test_an_unknown_name_is_refused_with_what_comes_close() -> None:
    with pytest.raises(UsageError, match=r"'acuracy-drop'\. Did you mean accuracy-drop"):
        check_named("acuracy-drop")
    with pytest.raises(UsageError, match=r"'zzz'\. There are: no-speed-up, "):
        page_of("zzz")


def test_what_a_fault_is_a_consequence_of_is_a_check_and_leads_to_no_circle() -> None:
    causes = {check.name: check.consequence_of for check in ALL_CHECKS}

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join((*trail, name))}"
        for cause in causes[name]:
            walk(cause, (*trail, name))

    for name in causes:
        walk(name, ())


@pytest.mark.parametrize("name", ["overlapping-samples", "padded-evaluation"])
def test_what_a_split_for_each_rank_brings_about(name: str) -> None:
    assert "train-validation-overlap" in check_named(name).consequence_of
