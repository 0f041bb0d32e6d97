"""What the name of a reported figure says: which way is better, and what it was computed on."""

import re
from typing import Literal

Direction = Literal["higher", "lower"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_HIGHER = _set(
    "acc accuracy ap auc auprc auroc bleu dice f1 fbeta iou jaccard kappa map mcc miou mrr ndcg "
    "precision prauc psnr r2 recall rouge sensitivity specificity ssim"
)
_LOWER = _set(
    "bpb bpc brier cer crossentropy ece err error fid loss mae mape mse nll perplexity ppl rmse wer"
)
_TRAINING = _set("train training")
_EVALUATION = _set("dev eval evaluation test val valid validation")
_OTHER_ACCURACIES = _set("balanced class mean per top weighted")
"""Words beside "accuracy" that make it another figure than the share of right answers."""

_COSTS = _set(
    "count epoch epochs flos lr memory num runtime samples second seconds speed step steps "
    "throughput time"
)
"""What libraries report beside the quality: it may differ between ranks."""

_NO_MEANS = _set(
    "ap auc auprc auroc bleu dice f1 fbeta fid iou jaccard kappa map mcc miou pearson prauc "
    "precision r2 recall sensitivity spearman specificity"
)
"""Figures of a whole set that no weighted mean of those of its parts gives."""

_UNUSUAL = (("IoU", "Iou"), ("mAP", "Map"))
"""Names whose capitals are not where a word begins."""

_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")


def words_of(name: str) -> tuple[str, ...]:
    """``eval/MulticlassF1Score`` as ``("eval", "multiclass", "f1", "score")``; ``acc1`` as ``acc``
    too."""
    for given, usual in _UNUSUAL:
        name = name.replace(given, usual)
    words = [word.lower() for word in _PARTS.findall(name)]
    bare = [word.rstrip("0123456789") for word in words]
    return tuple(dict.fromkeys([*words, *(word for word in bare if word)]))


def direction_of(name: str) -> Direction | None:
    """Which way is better; None when the name does not tell, or says both."""
    words = set(words_of(name))
    is_higher, is_lower = bool(words & _HIGHER), bool(words & _LOWER)
    if is_higher == is_lower:
        return None
    return "higher" if is_higher else "lower"


def may_be_share(name: str) -> bool:
    """Where its values lie between 0 and 1, it is a share: an accuracy, an error rate."""
    words = set(words_of(name))
    is_rate = bool(words & {"cer", "err", "error", "wer"}) and "mean" not in words
    return direction_of(name) == "higher" or is_rate


def is_loss(name: str) -> bool:
    return "loss" in words_of(name)


def is_of_training(name: str) -> bool:
    """It says itself that it was computed on what was trained on."""
    return bool(_TRAINING & set(words_of(name)))


def is_of_evaluation(name: str) -> bool:
    """It is a figure of a whole evaluation: its name says so, or it is one of quality other than a
    loss, which training computes too."""
    words = words_of(name)
    if is_of_training(name) or words[-1:] == ("step",):
        return False
    has_said = not _EVALUATION.isdisjoint(words)
    if direction_of(name) is None:
        return has_said and _COSTS.isdisjoint(words)
    return has_said or "loss" not in words


def is_mean_over_samples(name: str) -> bool:
    """It may be one: then the ranks' figures, each weighted by its samples, add up to that of all
    of them. Precision, recall and what is made of them are not: their weights are others."""
    return _NO_MEANS.isdisjoint(words_of(name))


def are_of_one_kind(name: str, other: str) -> bool:
    """``val_acc`` and ``MulticlassAccuracy``: the same figure, whoever computed it."""
    if is_accuracy(name) and is_accuracy(other):
        return True
    words = (_HIGHER | _LOWER) - {"acc", "accuracy", "err", "error"}
    return not words.isdisjoint(set(words_of(name)) & set(words_of(other)))


def is_accuracy(name: str) -> bool:
    """The share of right answers, or the same in per cent."""
    words = set(words_of(name))
    if "top1" in words:  # its number is taken off as well
        words -= {"top"}
    return bool(words & {"acc", "accuracy"}) and not words & _OTHER_ACCURACIES
