"""The strategies there are, by name."""

import difflib

from scaleproof.errors import UsageError
from scaleproof.strategies.data_parallel import DataParallelStrategy
from scaleproof.strategies.ddp import DdpStrategy
from scaleproof.strategies.single import SingleStrategy
from scaleproof.strategies.strategy import AbstractStrategy, Placement

StrategyClass = type[SingleStrategy] | type[DdpStrategy] | type[DataParallelStrategy]

STRATEGIES: tuple[StrategyClass, ...] = (SingleStrategy, DdpStrategy, DataParallelStrategy)


def find_strategy(name: str) -> StrategyClass:
    """The strategy class called ``name``; ``UsageError`` when there is none."""
    for strategy in STRATEGIES:
        if strategy.name == name:
            return strategy
    names = [strategy.name for strategy in STRATEGIES]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"there is no strategy {name!r}.{hint} Expected one of {', '.join(names)}.")


def make_strategy(name: str, placement: Placement) -> AbstractStrategy:
    return find_strategy(name)(placement)
