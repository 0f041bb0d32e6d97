"""What the times of the epoch benchmark come to, as text."""

import math
import statistics
from dataclasses import dataclass
from typing import final

NUM_IMAGES = 50_000
BATCH_PER_DEVICE = 128

TRAININGS = ("tutorial", "hand_tuned", "lightning", "accelerate", "scaleproof")
LIMIT = "2x-hand_tuned-1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """``times_s[contender][round]`` has the seconds each process of the contender took for
    ``num_steps`` steps of 128 images."""

    machine: dict[str, str | int | float]
    num_steps: int
    times_s: dict[str, list[list[float]]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A ratio with the value it has in each round, and the value wanted."""

    text: str
    values: tuple[float, ...]
    wanted: float
    at_most: bool

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        return self.median <= self.wanted if self.at_most else self.median >= self.wanted


def render(results: Results) -> str:
    """The whole table, for people."""
    lines = [f"{key}: {value}" for key, value in results.machine.items()]
    lines += [
        "",
        f"{'':24}{'ms per step':>12}{'lowest':>9}{'highest':>9}{'epoch, s':>10}{'images/s':>10}",
    ]
    for name, rounds in results.times_s.items():
        num_devices = _num_devices(name)
        steps_ms = [1e3 * max(times) / results.num_steps for times in rounds]
        median_ms = statistics.median(steps_ms)
        images_per_s = statistics.median(_throughput(results, name))
        epoch_s = "" if name == LIMIT else f"{median_ms * steps_per_epoch(num_devices) / 1e3:.2f}"
        lines.append(
            f"{name:24}{median_ms:12.2f}{min(steps_ms):9.2f}{max(steps_ms):9.2f}"
            f"{epoch_s:>10}{images_per_s:10.0f}"
        )
    lines += ["", f"{'paired, round by round':50}{'median':>8}{'lowest':>8}{'highest':>8}  wanted"]
    for figure in figures(results):
        sign = "<=" if figure.at_most else ">="
        lines.append(
            f"{figure.text:50}{figure.median:8.3f}{min(figure.values):8.3f}"
            f"{max(figure.values):8.3f}  {sign} {figure.wanted:.2f}  "
            f"{'met' if figure.is_met else 'MISSED'}"
        )
    return "\n".join([*lines, *_reading_of_the_limit(results)]) + "\n"


def figures(results: Results) -> list[Figure]:
    """The wanted figures for which there are times."""
    wanted = [
        ("time, scaleproof / tutorial, 1 device", "tutorial", 1, 0.40),
        ("time, scaleproof / hand-tuned, 1 device", "hand_tuned", 1, 1.01),
        ("time, scaleproof / hand-tuned, 2 devices", "hand_tuned", 2, 1.01),
        ("time, scaleproof / Lightning, 1 device", "lightning", 1, 1.00),
        ("time, scaleproof / Lightning, 2 devices", "lightning", 2, 1.00),
        ("time, scaleproof / Accelerate, 1 device", "accelerate", 1, 1.00),
        ("time, scaleproof / Accelerate, 2 devices", "accelerate", 2, 1.00),
    ]
    found: list[Figure] = []
    for text, loop, num_devices, limit in wanted:
        ours, theirs = f"scaleproof-{num_devices}", f"{loop}-{num_devices}"
        if ours in results.times_s and theirs in results.times_s:
            values = _ratios(_throughput(results, theirs), _throughput(results, ours))
            found.append(Figure(text=text, values=values, wanted=limit, at_most=True))
    for loop in ("hand_tuned", "scaleproof"):
        one, two = f"{loop}-1", f"{loop}-2"
        if LIMIT in results.times_s and two in results.times_s:
            values = _ratios(_throughput(results, two), _throughput(results, LIMIT))
            text = f"images/s, {loop} on 2 devices / machine limit"
            found.append(Figure(text=text, values=values, wanted=0.95, at_most=False))
        if one in results.times_s and two in results.times_s:
            values = tuple(
                1 - ratio
                for ratio in _ratios(_epoch_times_s(results, two), _epoch_times_s(results, one))
            )
            text = f"epoch time saved, {loop}, 1 -> 2 devices"
            found.append(Figure(text=text, values=values, wanted=0.40, at_most=False))
    return found


def steps_per_epoch(num_devices: int) -> int:
    """All 50,000 images, the last batch short."""
    return math.ceil(NUM_IMAGES / (BATCH_PER_DEVICE * num_devices))


def _reading_of_the_limit(results: Results) -> list[str]:
    """How much faster two devices could be at best, in words."""
    if LIMIT not in results.times_s or "hand_tuned-1" not in results.times_s:
        return []
    gains = _ratios(_throughput(results, LIMIT), _throughput(results, "hand_tuned-1"))
    gain = statistics.median(gains)
    return [
        "",
        f"Machine limit: two independent trainings at once get {gain:.3f} times the images per "
        "second of one",
        f"({min(gains):.3f} to {max(gains):.3f}), so no way to use both devices can save more than "
        f"{1 - 1 / gain:.1%} of the epoch time.",
    ]


def _num_devices(name: str) -> int:
    return int(name.rpartition("-")[2])


def _throughput(results: Results, name: str) -> tuple[float, ...]:
    """Images per second over all devices, one value per round."""
    images = results.num_steps * BATCH_PER_DEVICE
    if name == LIMIT:
        return tuple(sum(images / time for time in times) for times in results.times_s[name])
    return tuple(_num_devices(name) * images / max(times) for times in results.times_s[name])


def _epoch_times_s(results: Results, name: str) -> tuple[float, ...]:
    num_steps = steps_per_epoch(_num_devices(name))
    return tuple(max(times) / results.num_steps * num_steps for times in results.times_s[name])


def _ratios(above: tuple[float, ...], below: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(above, below, strict=True))
