"""The table and the sentences about a check that all text formats show."""

from scaleproof.checks.wording import counted, listed
from scaleproof.report.checked import CheckedScript
from scaleproof.report.tables import Table

_NAMES = {
    "union": "Each step fed what all ranks were fed",
    "reordered": "The same items in another order: rounding",
    "whole-step": "Each backward fed the whole step's items",
    "last-rank": "The last rank's items alone",
}


def replays_table(checked: CheckedScript | None) -> Table | None:
    """None without a replay."""
    if checked is None or not checked.replays:
        return None
    rows = tuple(
        (
            _NAMES[replay.name],
            f"{replay.num_steps} of {replay.num_wanted} steps",
            f"stopped: {replay.why_not}" if replay.why_not else "to the end",
        )
        for replay in checked.replays
    )
    return Table(
        title="Replays on one process",
        columns=("Replay", "Replayed", ""),
        rows=rows,
        numeric=False,
    )


def sentences(checked: CheckedScript | None) -> tuple[str, ...]:
    """How far the check reached, in words."""
    if checked is None:
        return ()
    found = [_replayed(checked)]
    if checked.num_ranks != checked.num_devices:
        found.append(
            f"The script trained on {counted(checked.num_ranks, 'rank')}, "
            f"{checked.num_devices} were asked for: it decides that itself."
        )
    if checked.was_ended:
        found.append(
            f"The script was ended after {checked.num_steps} steps: what it does later "
            "(evaluation, further epochs, checkpoints) was not seen. --steps 0 runs it to its own "
            "end."
        )
    if checked.forces_cpu:
        what = listed(checked.forced) if checked.forced else "nothing was asked of them"
        found.append(f"CUDA and NCCL were mapped to the CPU and gloo (--force-cpu): {what}.")
    return tuple(found)


def _replayed(checked: CheckedScript) -> str:
    union = next((replay for replay in checked.replays if replay.name == "union"), None)
    if checked.num_ranks < 2:
        return "One process trained: there was nothing to replay."
    if union is None:
        return "Nothing was replayed: the run did not come to its end."
    if checked.agreement is None:
        return f"Not replayed on one process: {union.why_not or 'nothing could be compared'}."
    noise = "" if not checked.noise else f", its own rounding {checked.noise:.1e}"
    rest = f" Then it stopped: {union.why_not}." if union.why_not else ""
    return (
        f"Replayed {union.num_steps} of {union.num_wanted} steps on one process, fed what all "
        f"{checked.num_ranks} ranks were fed: the gradients differ by {checked.agreement:.1e} "
        f"(median{noise}).{rest}"
    )
