"""Who waited for whom when a run stood still, and what usually makes it do so.

Records of what every process was doing when it was ended, and the sentences they come to. The
sequence numbers are torch's own (flight recorder): collectives of one group that have the same
number on two ranks were meant to be one.
"""

from typing import final

import msgspec

from scaleproof.evidence.stacks import Frame

_ENTERING = ("init_process_group", "_create_c10d_store", "rendezvous", "_rendezvous_helper")
_COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all"),
    *("all_to_all_single", "barrier", "broadcast", "broadcast_object_list", "gather", "recv"),
    *("gather_object", "monitored_barrier", "reduce", "reduce_scatter", "reduce_scatter_tensor"),
    *("scatter", "scatter_object_list", "send", "wait_tensor", "all_reduce_coalesced"),
)
_BACKWARD = ("_engine_run_backward",)
_LOADING = ("_try_get_data", "_get_data", "_next_data")


@final
class Collective(msgspec.Struct, frozen=True, kw_only=True):
    """One collective of one rank. ``sizes``: of its inputs; ``sequence``: its number in ``group``,
    counted from 1; ``age_s``: since it was called."""

    operation: str
    sizes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    sequence: int
    group: str
    is_done: bool
    age_s: float

    @property
    def words(self) -> str:
        """``all_reduce of 3x2 float (collective 7)``."""
        shapes = ["x".join(map(str, size)) or "one number" for size in self.sizes]
        kinds = [*self.dtypes, *("" for _ in shapes[len(self.dtypes) :])]
        what = ", ".join(
            f"{shape} {kind.lower()}".strip()
            for shape, kind in zip(shapes[:2], kinds[:2], strict=True)
        )
        more = f" and {len(shapes) - 2} more" if len(shapes) > 2 else ""
        return f"{self.operation}{f' of {what}' if what else ''}{more} (collective {self.sequence})"


@final
class Collectives(msgspec.Struct, frozen=True, kw_only=True):
    """A process's answer when it was asked: its latest collectives, oldest first. ``sequence`` is
    how many the default group counts; -1 without one."""

    sequence: int
    latest: tuple[Collective, ...]

    @property
    def waiting(self) -> Collective | None:
        """The oldest that is not done."""
        return next((entry for entry in self.latest if not entry.is_done), None)

    @property
    def last_done(self) -> Collective | None:
        return next((entry for entry in reversed(self.latest) if entry.is_done), None)


@final
class StuckRank(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a run that stood still. ``rank`` is -1 where nothing said it.

    ``stack`` is the main thread's, innermost call first; ``data_worker`` that of a process which
    loads data for it; both empty where unknown. ``has_joined``: it was seen joining a process
    group or training. ``ending``: in words, for a process that had ended.
    """

    rank: int
    pid: int
    activity: str
    epoch: int
    step: int
    is_alive: bool
    has_joined: bool
    ending: str = ""
    stack: tuple[Frame, ...] = ()
    data_worker: tuple[Frame, ...] = ()
    waiting: Collective | None = None
    last_done: Collective | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank}" if self.rank >= 0 else f"process {self.pid}"

    @property
    def users_frame(self) -> Frame | None:
        """The innermost call in the user's own code."""
        return next((frame for frame in self.stack if frame.is_users), None)

    @property
    def is_entering(self) -> bool:
        """It is in ``init_process_group``."""
        return self.is_alive and self._calls(_ENTERING)

    @property
    def is_loading(self) -> bool:
        """It waits for a data worker."""
        return self.is_alive and self._calls(_LOADING)

    @property
    def is_waiting(self) -> bool:
        """It stands in a collective itself, rather than having begun one that goes on behind it."""
        if not self.is_alive or self.is_entering:
            return False
        return self._calls(_COLLECTIVES) or (
            self.waiting is not None and (self.is_in_backward or not self.stack)
        )

    @property
    def is_in_backward(self) -> bool:
        return self._calls(_BACKWARD)

    @property
    def operation(self) -> str:
        """What it waits in, in words."""
        if self.waiting is not None:
            return self.waiting.words
        return next((f.function for f in self.stack if f.function in _COLLECTIVES), "a collective")

    def _calls(self, functions: tuple[str, ...]) -> bool:
        """Whether one of these is among its calls inside the user's innermost one."""
        for frame in self.stack:
            if frame.is_users:
                return False
            if frame.function in functions:
                return True
        return False


@final
class HangRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run that stood still for ``timeout_s``. ``num_ranks`` is 0 where nothing said it."""

    timeout_s: float
    num_ranks: int
    ranks: tuple[StuckRank, ...]


_SAME_NUMBER = (
    "Give every rank the same number of batches (DistributedSampler, drop_last, or DDP's join()), "
    "call every collective on all of them, and decide about stopping together."
)


def describe_hang(hang: HangRecord) -> str:
    """Who waits for whom, where the others are, the usual cause, and what to do."""
    return " ".join(
        [
            f"nothing moved for {hang.timeout_s:g} s, so it was ended.",
            *(_where(rank) for rank in hang.ranks),
            *_never_seen(hang),
            _cause(hang),
        ]
    )


def _where(rank: StuckRank) -> str:
    name = rank.name.capitalize()
    moment = f"after {rank.step} step{'' if rank.step == 1 else 's'}"
    if not rank.is_alive:
        return f"{name} had {rank.ending or 'ended'} {moment}."
    frame = rank.users_frame
    place = f", called in {frame.place}" if frame else ""
    if rank.is_entering:
        return f"{name} waits in init_process_group{place}."
    if rank.is_waiting:
        return f"{name} waits in {rank.operation}{place}, {moment}."
    if rank.is_loading:
        inner = next((frame for frame in rank.data_worker if frame.is_users), None)
        worker = f", which is in {inner.place}" if inner else ""
        return f"{name} waits for a data worker{worker}{place}, {moment}."
    if frame is None:
        return f"{name} was last seen {rank.activity}, {moment}."
    if not rank.has_joined:
        return f"{name} never joined the process group: it is in {frame.place}."
    return f"{name} is in {frame.place}, {moment}."


def _never_seen(hang: HangRecord) -> list[str]:
    seen = {rank.rank for rank in hang.ranks}
    missing = [str(rank) for rank in range(hang.num_ranks) if rank not in seen]
    if not missing or -1 in seen:
        return []
    ranks = f"Ranks {', '.join(missing)} were" if len(missing) > 1 else f"Rank {missing[0]} was"
    return [f"{ranks} never seen on this machine."]


def _cause(hang: HangRecord) -> str:
    entering = [rank for rank in hang.ranks if rank.is_entering]
    waiting = [rank for rank in hang.ranks if rank.is_waiting]
    others = [rank for rank in hang.ranks if rank not in waiting]
    if entering:
        return _cause_at_the_start(hang, entering)
    loading = [rank for rank in others if rank.is_loading]
    if loading:
        return (
            f"A data worker of {_names(loading)} does not deliver: it is deadlocked, or its data "
            "does not come. Try num_workers=0, which shows where; give DataLoader a timeout; a "
            "lock or a thread that was there before the workers were forked is a usual cause."
        )
    if not waiting:
        return (
            f"No rank waits in a collective: {_names(others)} itself stands still, in a lock, in "
            "a pipe or socket that nobody answers, or asleep. Look at that line; raise --timeout "
            "when it is meant to take that long."
        )
    dead = [rank for rank in others if not rank.is_alive and _has_failed(rank)]
    if dead:
        return (
            f"{_names(dead).capitalize()} died, and the others wait for it. Find out why it died: "
            "its last lines are in the output above."
        )
    if not others:
        return _cause_among_waiting(waiting)
    return _cause_of_absence(waiting, others)


def _cause_at_the_start(hang: HangRecord, entering: list[StuckRank]) -> str:
    if hang.num_ranks and len(entering) >= hang.num_ranks:
        return (
            f"All {hang.num_ranks} ranks call it and don't find each other: they differ in "
            "MASTER_ADDR, MASTER_PORT, backend or world_size. Give all the same."
        )
    expected = f" of {hang.num_ranks}" if hang.num_ranks else ""
    return (
        f"Only {len(entering)}{expected} ranks called init_process_group, which waits for all. "
        "Call it on every rank, before any branch on the rank; with a launcher, compare "
        "world_size with the processes that were started."
    )


def _cause_among_waiting(waiting: list[StuckRank]) -> str:
    entries = [rank.waiting for rank in waiting if rank.waiting is not None]
    groups = {entry.group for entry in entries}
    numbers = {entry.sequence for entry in entries}
    outside = [rank for rank in waiting if not rank.is_in_backward]
    if outside and len(outside) < len(waiting):
        return (
            f"{_names(outside).capitalize()} left the training loop, or took a branch, while the "
            "others are in backward: uneven batches (one rank's loader is shorter), or a branch "
            f"with a collective that only some ranks take. {_SAME_NUMBER}"
        )
    operations = {entry.operation for entry in entries}
    if len(entries) < len(waiting) or len(entries) < 2:
        return (
            "The ranks wait in collectives that don't meet: they call different ones, or in "
            "another order. Call the same collectives in the same order on every rank."
        )
    if len(groups) > 1:
        return (
            "The ranks wait in different process groups, each for another: call the collectives "
            "of the groups in the same order on every rank."
        )
    if len(numbers) > 1:
        least = min(entries, key=lambda entry: entry.sequence).sequence
        ahead = [rank for rank in waiting if rank.waiting and rank.waiting.sequence > least]
        return (
            f"{_names(ahead).capitalize()} called more collectives than the others: a branch that "
            "only some ranks take, or uneven batches. Take the collective out of the branch, or "
            "give every rank the same number of batches."
        )
    if len(operations) > 1:
        return (
            f"As collective {numbers.pop()} the ranks call different ones: the order differs, or "
            "a branch that only some ranks take has one more. Call the same collectives in the "
            "same order on every rank."
        )
    if len({entry.sizes for entry in entries}) > 1 or len({e.dtypes for e in entries}) > 1:
        return (
            f"As collective {numbers.pop()} the ranks give tensors of different shapes: either "
            "the data differs in size, or these are two different calls that met because a branch "
            "only some ranks take has one more. Give it the same shape and dtype on every rank: "
            "pad the smaller, or gather the sizes first."
        )
    return (
        "All ranks are in the same collective and it does not finish: the network between them, "
        "or a device, stands still. Look at the machines' links; NCCL_DEBUG=INFO says more."
    )


def _cause_of_absence(waiting: list[StuckRank], others: list[StuckRank]) -> str:
    names = _names(others)
    ended = [rank for rank in others if not rank.is_alive or rank.activity == "at its end"]
    if ended:
        names = _names(ended)
        fewer = min(rank.step for rank in ended) < max(rank.step for rank in waiting)
        many = "it took fewer steps" if fewer else "it ended"
        return (
            f"{names.capitalize()} never comes, because {many}: uneven batches (one rank's loader "
            "is shorter), an early stop or exit decided on one rank, or a collective after "
            f"training that only some ranks call. {_SAME_NUMBER}"
        )
    if any(not rank.has_joined for rank in others):
        return (
            f"{names.capitalize()} takes no part: a branch that only some ranks take. Call "
            "collectives on every rank."
        )
    uneven = " uneven batches," if any(rank.is_in_backward for rank in waiting) else ""
    return (
        f"{names.capitalize()} never came:{uneven} a branch that only some ranks take, work that "
        "only one rank does while the others wait, or a rank that stands still where it is. Let "
        "every rank call the collective; raise --timeout when that work is meant to take so long."
    )


def _has_failed(rank: StuckRank) -> bool:
    return rank.ending not in ("", "ended by itself")


def _names(ranks: list[StuckRank]) -> str:
    return " and ".join(rank.name for rank in ranks)
