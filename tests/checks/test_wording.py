from scaleproof.checks.wording import counted, listed, percent, short_percent


def test_numbers_are_rounded_for_reading() -> None:
    assert percent(0.986) == "98.6 %"
    assert percent(0.99) == "99.0 %"
    assert short_percent(0.12) == "12 %"
    assert short_percent(0.125) == "12.5 %"
    assert short_percent(1.0) == "100 %"


def test_lists_end_in_and() -> None:
    assert listed([1]) == "1"
    assert listed([1, 2]) == "1 and 2"
    assert listed([1, 2, 3]) == "1, 2 and 3"
    assert listed([1, 2, 3, 4, 5]) == "1, 2, 3 and 2 more"


def test_counts_agree_with_their_noun() -> None:
    assert counted(1, "run") == "1 run"
    assert counted(1200, "run") == "1,200 runs"
