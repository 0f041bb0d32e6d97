"""The application that commands register with, and what their errors become."""

import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

from scaleproof.cli_show import say
from scaleproof.errors import EvidenceError, RunError, ScaleproofError, UsageError

EXIT_USAGE, EXIT_UNDECIDED, EXIT_BUG, EXIT_INTERRUPTED = 2, 3, 70, 130
EXIT_CODES = {UsageError: EXIT_USAGE, RunError: 4, EvidenceError: 5}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Does training on N devices run faster than on one, does it learn just as well, is it "
    "sound - and if not, why, and what to change?",
    epilog="Exit codes: 0 adopt, 1 reject, 2 wrong usage, 3 undecided, 4 a run failed, "
    "5 the evidence can't be read, 70 a bug of ours, 130 interrupted.",
)

P = ParamSpec("P")


def command(function: Callable[P, int], *, options_first: bool = False) -> Callable[P, int]:
    """Make a command of a function that returns its exit code; errors become codes too.

    ``options_first``: what follows the first argument is not for us.
    """

    @wraps(function)
    def with_exit_code(*args: P.args, **kwargs: P.kwargs) -> int:
        raise typer.Exit(_exit_code_of(function, *args, **kwargs))

    app.command(context_settings={"allow_interspersed_args": not options_first})(with_exit_code)
    return function


def as_typed() -> tuple[str, ...]:
    """The command line, to be shown and typed again."""
    return ("scaleproof", *sys.argv[1:])


def _exit_code_of(function: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    try:
        return function(*args, **kwargs)
    except ScaleproofError as error:
        say(str(error))
        return EXIT_CODES[type(error)]
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "pooch"):
            raise
        say(
            f"this command trains, which needs {error.name}: pip install 'scaleproof[torch]'. "
            "judge, report and explain work without."
        )
        return EXIT_USAGE
    except Exception:  # noqa: BLE001 - the last resort: a bug is reported as one
        traceback.print_exc()
        say("this is a bug of ours. Please report it with the lines above.")
        return EXIT_BUG
