"""What the user asks of a training: margins, floors, and which checks may stop an adoption.

As a TOML file::

    confidence = 0.95
    advisory = ["low-efficiency", "batch-size-unscaled", "identical-dropout",
                "batch-coupled-operation"]

    [checks.no-speed-up]
    min_speed_up = 1.67

    [checks.accuracy-paradox.min_recall_by_class]
    fraud = 0.7

Everything has a default: the empty file is a profile.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final, get_type_hints

import msgspec

from scaleproof.checks.all_checks import ALL_CHECKS, check_named
from scaleproof.checks.check import AbstractCheck
from scaleproof.errors import UsageError

_SHARES = frozenset(
    {
        "max_drop",
        "max_half_width",
        "max_share",
        "max_spike_share",
        "min_accuracy",
        "min_efficiency",
        "min_recall",
        "min_recall_by_class",
    }
)
"""Thresholds that are a share of something; every other number may be anything from 0 on."""


@final
class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``confidence`` and ``allow_single_seed`` hold for every check that has such a field and no
    value of its own in ``checks``, which maps the name of a check to its thresholds.

    A check named in ``advisory`` is reported, but neither rejects nor prevents an adoption. Of the
    default ones, ``identical-dropout`` is found in many good scripts: torch's default seed brings
    it about; ``batch-coupled-operation`` is no fault of a script.
    """

    confidence: float = 0.95
    allow_single_seed: bool = False
    advisory: tuple[str, ...] = (
        "low-efficiency",
        "batch-size-unscaled",
        "identical-dropout",
        "batch-coupled-operation",
    )
    checks: dict[str, dict[str, Any]] = {}

    def build_checks(self) -> tuple[AbstractCheck[Any], ...]:
        """Every check, in report order, with its thresholds.

        Raises ``UsageError`` for an unknown check or threshold, or an impossible value.
        """
        _check_number("confidence", "confidence", self.confidence)
        for name in (*self.advisory, *self.checks):
            check_named(name)
        return tuple(self._build(kind) for kind in ALL_CHECKS)

    def _build(self, kind: type[AbstractCheck[Any]]) -> AbstractCheck[Any]:
        types = _threshold_types(kind)
        common = {"confidence": self.confidence, "allow_single_seed": self.allow_single_seed}
        thresholds = {key: value for key, value in common.items() if key in types}
        for key, given in self.checks.get(kind.name, {}).items():
            if key not in types:
                raise UsageError(
                    f"checks.{kind.name} has no threshold {key!r}. {_hint(key, types)}"
                )
            where = f"checks.{kind.name}.{key}"
            thresholds[key] = _convert(where, given, types[key])
            _check_threshold(where, key, thresholds[key])
        return kind(**thresholds)


def profile_from_dict(given: Mapping[str, Any]) -> Profile:
    """A profile from plain values, checked whole. Raises ``UsageError`` naming the key."""
    types = get_type_hints(Profile)
    for key in given:
        if key not in types:
            raise UsageError(f"a profile has no key {key!r}. {_hint(key, types)}")
    profile = Profile(**{key: _convert(key, value, types[key]) for key, value in given.items()})
    profile.build_checks()
    return profile


def layered_profile(base: Mapping[str, Any], path: Path | None) -> Profile:
    """The profile of a recipe or a study, with what a TOML file says laid over it, key by key.

    Raises ``UsageError`` naming the file, and the line or the key.
    """
    if path is None:
        return profile_from_dict(base)
    given = _read_toml(path)
    try:
        profile_from_dict(given)  # so that an error is of the file alone
        return profile_from_dict(_laid_over(base, given))
    except UsageError as error:
        raise UsageError(f"in the profile {path}: {error}") from error


def _laid_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _laid_over(cast(Mapping[str, Any], below), cast(Mapping[str, Any], value))
        else:
            merged[key] = value
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"can't read the profile {path}: {error.strerror or error}. Name a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"the profile {path} is not TOML: {error}. Write it as key = value lines and "
            "[checks.NAME] tables."
        ) from error


def with_thresholds(profile: Profile, thresholds: Mapping[tuple[str, str], Any]) -> Profile:
    """``profile`` with single thresholds replaced, keyed by (name of the check, threshold)."""
    checks = {name: dict(table) for name, table in profile.checks.items()}
    for (name, key), value in thresholds.items():
        checks.setdefault(name, {})[key] = value
    changed = msgspec.structs.replace(profile, checks=checks)
    changed.build_checks()
    return changed


def to_dict(profile: Profile) -> dict[str, Any]:
    """Plain values that ``profile_from_dict`` reads back."""
    return msgspec.to_builtins(profile)


def _threshold_types(kind: type[AbstractCheck[Any]]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    assert dataclasses.is_dataclass(kind)  # every check is one
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _convert(where: str, given: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(given, type=kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where} is {given!r}: {error}. Write a value of that type.") from error


def _check_threshold(where: str, key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, item in cast(Mapping[str, float], value).items():
            _check_threshold(f"{where}.{name}", key, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(where, key, value)


def _check_number(where: str, key: str, value: float) -> None:
    if key == "confidence":
        is_allowed, allowed = 0.5 < value < 1, "more than 0.5 and less than 1"
    elif key in _SHARES:
        is_allowed, allowed = 0 <= value <= 1, "a share from 0 to 1"
    else:
        is_allowed, allowed = 0 <= value < math.inf, "a number from 0 on"
    if not is_allowed:  # NaN is not allowed either: it compares as false
        raise UsageError(f"{where} is {value}, expected {allowed}.")


def _hint(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(known)}." if known else "It has none."
