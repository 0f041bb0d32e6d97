"""What is digested of a forward's arguments."""

import torch

from scaleproof.observe.contents import MAX_APART, digest_of_inputs

TOKENS = torch.arange(600).view(30, 20)


def test_each_tensor_has_a_digest_in_its_place() -> None:
    state = torch.rand(1, 20, 64)
    one = digest_of_inputs(((TOKENS, (state, state)), {})).split("/")
    other = digest_of_inputs(((TOKENS, (state + 1, state)), {})).split("/")

    assert len(one) == 3
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, True]
    assert not any(digest.startswith("~") for digest in one)


def test_what_is_small_or_alike_in_all_rows_is_marked_and_still_told_apart() -> None:
    small, ones = torch.rand(7), torch.ones(4, 16)
    digests = digest_of_inputs([small, ones, 2 * ones, TOKENS]).split("/")

    assert [digest.startswith("~") for digest in digests] == [True, True, True, False]
    assert digests[1] != digests[2]


def test_one_row_is_not_alike() -> None:
    assert not digest_of_inputs([torch.ones(1, 8)]).startswith("~")


def test_many_tensors_share_the_last_digest() -> None:
    inputs = [TOKENS + i for i in range(MAX_APART + 3)]
    digests = digest_of_inputs(inputs).split("/")

    assert len(digests) == MAX_APART + 1
    assert digests != digest_of_inputs([*inputs[:-1], TOKENS]).split("/")


def test_numbers_without_a_dim_and_no_tensors_have_none() -> None:
    assert digest_of_inputs([torch.tensor(3.0), "text"]) == ""
