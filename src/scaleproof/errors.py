"""What can go wrong in a way the user can mend.

Every message says what was given, what was expected and what to do next. Anything else that
escapes is a bug of ours (exit code 70).
"""

from typing import final


class ScaleproofError(Exception):
    """Base of the errors a user can mend; never raised itself."""


@final
class UsageError(ScaleproofError):
    """The request makes no sense: an unknown name, an impossible number (exit code 2)."""


@final
class RunError(ScaleproofError):
    """A training run failed; the message names the rank, the step and the cause (exit code 4)."""


@final
class EvidenceError(ScaleproofError):
    """A study can't be read, or its runs can't be compared (exit code 5)."""
