import pytest

from scaleproof.checks.metric_names import (
    direction_of,
    is_accuracy,
    is_mean_over_samples,
    is_of_evaluation,
    is_of_training,
    may_be_share,
    words_of,
)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("accuracy", "higher"),
        ("eval/MulticlassF1Score", "higher"),
        ("BinaryAUROC", "higher"),
        ("acc@1", "higher"),
        ("test_acc1", "higher"),
        ("mIoU", "higher"),
        ("mAP50-95", "higher"),
        ("MeanAveragePrecision", "higher"),
        ("val_loss_epoch", "lower"),
        ("MeanSquaredError", "lower"),
        ("perplexity", "lower"),
        ("learning_rate", None),
        ("precision_error", None),
        ("", None),
    ],
)
def test_the_name_says_which_way_is_better(name: str, direction: str | None) -> None:
    assert direction_of(name) == direction


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loss", True),
        ("accuracy", True),
        ("val_score", True),
        ("loss", False),
        ("train_accuracy", False),
        ("eval_runtime", False),
        ("eval_samples_per_second", False),
        ("val_loss_step", False),
    ],
)
def test_figures_of_an_evaluation(name: str, expected: bool) -> None:
    assert is_of_evaluation(name) is expected


def test_accuracies_are_shares_of_right_answers_only() -> None:
    assert is_accuracy("val/Accuracy")
    assert is_accuracy("top1_acc")
    assert not is_accuracy("balanced_accuracy")
    assert not is_accuracy("top5_acc")


def test_shares() -> None:
    assert may_be_share("f1") and may_be_share("WordErrorRate")
    assert not may_be_share("loss")
    assert not may_be_share("MeanAbsoluteError")


def test_words() -> None:
    assert words_of("train/acc1") == ("train", "acc1", "acc")
    assert is_of_training("train/acc1")


@pytest.mark.parametrize(
    ("name", "is_mean"),
    [
        ("MulticlassAccuracy", True),
        ("MeanSquaredError", True),
        ("val_loss", True),
        ("MulticlassF1Score", False),
        ("BinaryAveragePrecision", False),
        ("JaccardIndex", False),
        ("val/mIoU", False),
    ],
)
def test_which_figures_the_ranks_may_add_up(name: str, is_mean: bool) -> None:
    assert is_mean_over_samples(name) is is_mean
