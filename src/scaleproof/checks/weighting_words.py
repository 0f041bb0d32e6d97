"""What ``misweighted-gradients`` says of effective weights, for each way in which they are off."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.gradient_scaling import Weighting
from scaleproof.checks.gradient_weights import EQUAL
from scaleproof.checks.wording import counted, listed, percent


def with_number_of_others(found: Sequence[Judgement]) -> Judgement:
    if len(found) == 1:
        return found[0]
    others = f" The same kind of finding on {len(found) - 1} more (tensors, optimizers or runs)."
    return replace(found[0], sentence=found[0].sentence + others)


def judge_users(w: Weighting) -> Judgement:
    factors = np.array(w.user_factors)
    is_replica = bool(np.ptp(factors) > EQUAL)
    if not is_replica:
        factors = np.array(w.totals) / w.totals[0]
    words = listed([f"{factor:.3g}" for factor in factors.tolist()], most=8)
    what = "the same gradient" if is_replica else "their shards of the mean gradient"
    scales = ""
    if len(set(w.grad_scales)) > 1:
        each = listed([f"{scale:g}" for scale in w.grad_scales], most=8)
        scales = f" Their loss scales differ: {each}."
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{where(w)}: ranks use different multiples of {what}: {words} of rank "
        f"{w.ranks[0]}'s.{scales}",
        remedy="Use the same loss scale on all ranks, and scale or clip gradients by numbers that "
        "all ranks share.",
    )


def judge_summed(found: Sequence[Weighting]) -> Judgement:
    first = found[0]
    sentence = (
        f"{where(first)}: the ranks count {weights(first)} in the gradient that was used: "
        f"summed, not averaged, over {len(first.ranks)} ranks, at "
        f"{counted(len(found), 'probed step')}"
    )
    if all(w.is_loss_a_mean for w in found):
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{sentence}, though the loss is a mean over each rank's own batch.",
            remedy="Divide by the number of ranks after the all-reduce, or reduce with "
            "ReduceOp.AVG.",
        )
    return undecided(
        f"{sentence}; sound only if the loss was already divided by the samples of all ranks.",
        "If it was, name this check in the profile's advisory list; otherwise divide by the "
        "number of ranks.",
    )


def judge_reduced(found: Sequence[Weighting], *, is_sure: bool) -> Judgement:
    first = found[0]
    what = {"product": "product"}.get(first.reduction, f"{first.reduction} of the values")
    sentence = (
        f"{where(first)}: the gradient that was used is, value by value, the {what} of ranks "
        f"{listed(first.ranks, most=8)}, not their mean, at {counted(len(found), 'probed step')}."
    )
    if not is_sure:
        return undecided(sentence, "Train for more steps, so that more are probed.")
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=sentence,
        remedy="Reduce with ReduceOp.AVG, or with ReduceOp.SUM and a division by the ranks.",
    )


def judge_divided(first: Weighting) -> Judgement:
    num_ranks = len(first.ranks)
    return undecided(
        f"{where(first)}: the gradient that was used is 1/{num_ranks} of the ranks' mean: a "
        f"division by {num_ranks} backwards, or a second one by {num_ranks} ranks.",
        "Observe it with another number of accumulation steps than ranks.",
    )


def nothing_known(found: Sequence[Weighting]) -> Judgement:
    if not found:
        return undecided(
            "At no probed step did all ranks share their gradients, so there are no weights.",
            "See unsynced-gradients.",
        )
    first = found[0]
    if not any(w.has_gradients for w in found):
        return undecided(
            f"{first.run}: {first.where} had no gradient at any probed step, or zeros only.",
            "See frozen-parameters.",
        )
    if first.shares is None:
        return undecided(
            f"{where(first)}: the ranks' own gradients can't be told apart, so their weights "
            "can't be found.",
            "Give every rank samples of its own (see overlapping-samples), then observe again.",
        )
    return unexplained(first)


def unexplained(first: Weighting) -> Judgement:
    return undecided(
        f"{where(first)}: what was used is no weighted sum of the ranks' gradients "
        f"({percent(first.residual, 0)} of it is left over): something changes it after backward.",
        "If that is meant (strong compression, noise), name this check in the profile's advisory "
        "list.",
    )


def undecided(sentence: str, remedy: str) -> Judgement:
    return Judgement(outcome=Outcome.UNDECIDED, sentence=sentence, remedy=remedy)


def unclipped(w: Weighting) -> float:
    """Sum of the weights, without what clipping multiplied it with."""
    return w.total / w.clip_factor if w.clip_factor else w.total


def where(w: Weighting) -> str:
    tensor = f", tensor {w.tensor!r}" if w.tensor else ""
    return f"{w.run}, step {w.step}, {w.where}{tensor}"


def weights(w: Weighting) -> str:
    assert w.shares is not None  # only asked for where they are known
    return listed([f"{share * w.total:.3g}" for share in w.shares], most=8)
