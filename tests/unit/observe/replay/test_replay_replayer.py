"""The weights of the ranks are given to the script's one process in the middle of what it does."""

import torch

from scaleproof.observe.replay.replayer import _copy


def test_weights_are_the_ranks() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with torch.no_grad():
        _copy(weight, torch.tensor([3.0, 4.0]))
    assert weight.tolist() == [3, 4]


def test_a_graph_that_was_made_before_can_go_backward_after() -> None:
    """The usual order of a GAN: the fake batch is made, the critic's step comes first, and then
    backward goes through the fake batch into the generator."""
    generator = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    fake = generator(torch.ones(1, 2))
    with torch.no_grad():
        for parameter in generator.parameters():
            _copy(parameter, parameter.detach().clone())
    fake.sum().backward()
