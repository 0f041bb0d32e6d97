import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleproof.checks.accuracy_paradox import AccuracyParadox
from scaleproof.checks.all_checks import ALL_CHECKS
from scaleproof.checks.check import AbstractCheck
from scaleproof.errors import UsageError
from scaleproof.verdict.profile import (
    Profile,
    layered_profile,
    profile_from_dict,
    to_dict,
    with_thresholds,
)


def threshold(profile: Profile, check: str, key: str) -> Any:
    return getattr(next(c for c in profile.build_checks() if c.name == check), key)


def test_the_empty_profile_builds_every_check_with_its_defaults() -> None:
    checks = Profile().build_checks()

    assert [type(check) for check in checks] == list(ALL_CHECKS)
    assert all(check == type(check)() for check in checks)


def test_profile_wide_values_reach_every_check_that_has_them_unless_it_has_its_own() -> None:
    profile = profile_from_dict(
        {
            "confidence": 0.99,
            "allow_single_seed": True,
            "checks": {"recall-drop": {"confidence": 0.9, "allow_single_seed": False}},
        }
    )
    for check in profile.build_checks():
        values: dict[str, Any] = dataclasses.asdict(check)  # type: ignore[call-overload]
        own = check.name == "recall-drop"
        assert values.get("confidence", 0) in (0, 0.9 if own else 0.99)
        assert values.get("allow_single_seed") in (None, not own)


def test_a_toml_file_sets_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(
        "advisory = []\n[checks.no-speed-up]\nmin_speed_up = 2\n"
        "[checks.accuracy-paradox.min_recall_by_class]\nfraud = 0.7\n"
    )
    profile = layered_profile({}, path)

    assert profile.advisory == ()
    assert Profile().advisory == (
        "low-efficiency",
        "batch-size-unscaled",
        "identical-dropout",
        "batch-coupled-operation",
    )
    assert threshold(profile, "no-speed-up", "min_speed_up") == 2.0
    assert threshold(profile, "accuracy-paradox", "min_recall_by_class") == {"fraud": 0.7}


def test_it_goes_to_plain_values_and_back() -> None:
    profile = profile_from_dict({"checks": {"accuracy-drop": {"max_drop": 0.02}}})
    wire = msgspec.json.decode(msgspec.json.encode(to_dict(profile)))

    assert profile_from_dict(wire) == profile


def test_command_line_thresholds_replace_those_of_the_profile_and_keep_the_rest() -> None:
    profile = profile_from_dict(
        {"checks": {"no-speed-up": {"min_speed_up": 1.2, "confidence": 0.9}}}
    )
    changed = with_thresholds(
        profile, {("no-speed-up", "min_speed_up"): 1.67, ("accuracy-drop", "max_drop"): 0.0}
    )

    assert threshold(changed, "no-speed-up", "min_speed_up") == 1.67
    assert threshold(changed, "no-speed-up", "confidence") == 0.9
    assert threshold(changed, "accuracy-drop", "max_drop") == 0.0
    assert threshold(profile, "no-speed-up", "min_speed_up") == 1.2


@pytest.mark.parametrize(
    ("given_profile", "words"),
    [
        ({"confidnce": 0.9}, r"no key 'confidnce'. Did you mean confidence\?"),
        ({"confidence": "0.9"}, "confidence is '0.9': Expected `float`, got `str`"),
        ({"confidence": True}, "Expected `float`, got `bool`"),
        ({"confidence": 0.5}, "confidence is 0.5, expected more than 0.5 and less than 1"),
        ({"confidence": 1}, "confidence is 1.0, expected more than 0.5 and less than 1"),
        ({"confidence": math.nan}, "confidence is nan"),
        ({"allow_single_seed": 1}, "Expected `bool`, got `int`"),
        ({"advisory": ["low-efficency"]}, r"'low-efficency'. Did you mean low-efficiency"),
        ({"advisory": "low-efficiency"}, "Expected `array`, got `str`"),
        ({"checks": {"acuracy-drop": {}}}, "'acuracy-drop'"),
        ({"checks": {"accuracy-drop": 3}}, "Expected `object`, got `int`"),
        (
            {"checks": {"accuracy-drop": {"max_dorp": 0.1}}},
            r"checks.accuracy-drop has no threshold 'max_dorp'. Did you mean max_drop\?",
        ),
        ({"checks": {"same-order-every-epoch": {"x": 1}}}, "It has none"),
        ({"checks": {"accuracy-drop": {"max_drop": -0.1}}}, r"max_drop is -0.1, expected a share"),
        ({"checks": {"accuracy-drop": {"max_drop": math.nan}}}, "max_drop is nan"),
        ({"checks": {"accuracy-drop": {"max_drop": math.inf}}}, "max_drop is inf"),
        ({"checks": {"accuracy-drop": {"max_drop": "1 %"}}}, "max_drop is '1 %'"),
        ({"checks": {"replica-drift": {"tolerance": -1}}}, "tolerance is -1.0, expected a number"),
        ({"checks": {"replica-drift": {"tolerance": math.inf}}}, "tolerance is inf"),
        ({"checks": {"accuracy-below-floor": {"min_accuracy": 80}}}, "min_accuracy is 80.0"),
        ({"checks": {"accuracy-paradox": {"min_recall": 1.1}}}, "min_recall is 1.1"),
        (
            {"checks": {"accuracy-paradox": {"min_recall_by_class": {"fraud": -1}}}},
            "min_recall_by_class.fraud is -1.0, expected a share from 0 to 1",
        ),
        ({"checks": {"no-speed-up": {"min_speed_up": 0.5}}}, "min_speed_up is 0.5"),
        ({"checks": {"no-speed-up": {"confidence": 0.3}}}, "checks.no-speed-up.confidence is 0.3"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given_profile: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        profile_from_dict(given_profile)


def test_a_command_line_threshold_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a share"):
        with_thresholds(Profile(), {("accuracy-below-floor", "min_accuracy"): 78})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"confidence = \n", "is not TOML: Invalid value .at line 1, column 14"),
        (b"\xff\xfe", "is not TOML"),
        (b"a = " + b"[" * 20_000, "is not TOML"),
        (b"confidence = 2\n", r"in the profile .*profile.toml: confidence is 2.0"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=words):
        layered_profile({}, path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"can.t read the profile .*No such file"):
        layered_profile({}, tmp_path / "none.toml")
    with pytest.raises(UsageError, match="can't read the profile"):
        layered_profile({}, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["confidence", "allow_single_seed", "advisory", "checks", "other"])
THRESHOLDS = st.dictionaries(
    st.sampled_from([check.name for check in ALL_CHECKS]),
    st.dictionaries(
        st.sampled_from(["confidence", "max_drop", "min_recall_by_class", "min_accuracy"]), JSON
    ),
    max_size=2,
)


@given(st.dictionaries(KEYS, JSON) | st.fixed_dictionaries({"checks": THRESHOLDS}))
def test_anything_is_either_a_profile_or_refused(anything: dict[str, Any]) -> None:
    try:
        profile = profile_from_dict(anything)
    except UsageError as error:
        assert len(str(error)) > 20
    else:
        assert all(isinstance(check, AbstractCheck) for check in profile.build_checks())


def test_thresholds_of_one_check_are_typed() -> None:
    profile = profile_from_dict({"checks": {"accuracy-paradox": {"min_recall": 1}}})
    check = next(c for c in profile.build_checks() if isinstance(c, AccuracyParadox))

    assert isinstance(check.min_recall, float)


def test_a_file_is_laid_over_the_recipes_profile_key_by_key(tmp_path: Path):
    path = tmp_path / "scaleproof.toml"
    path.write_text("confidence = 0.9\n[checks.accuracy-drop]\nmax_drop = 0.03\n")
    base = {
        "checks": {"accuracy-drop": {"allow_single_seed": True}, "recall-drop": {"max_drop": 0.2}}
    }
    assert layered_profile(base, path).checks == {
        "accuracy-drop": {"allow_single_seed": True, "max_drop": 0.03},
        "recall-drop": {"max_drop": 0.2},
    }
    assert layered_profile(base, path).confidence == 0.9
    assert layered_profile(base, None).confidence == 0.95
