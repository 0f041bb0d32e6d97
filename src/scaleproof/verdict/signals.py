"""A run that somebody ended is no run with an error of its own."""

import re

_ENDED = re.compile(
    r"(rank \d+) failed (.+?): (?:ProcessEnded: .*?\((SIGTERM|SIGINT)\).*|KeyboardInterrupt\b.*)"
)
_WORDS = "was ended by a signal ("


def without_blame(sentence: str) -> str:
    """``sentence`` on a failed run; one that SIGTERM or SIGINT ended did not fail."""
    return _ENDED.sub(lambda m: f"{m[1]} {_WORDS}{m[3] or 'SIGINT'}) {m[2]}.", sentence, count=1)


def tells_of_signal(sentence: str) -> bool:
    """Whether ``without_blame`` found a signal from outside in it."""
    return _WORDS in sentence
