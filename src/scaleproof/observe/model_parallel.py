"""Which ranks hold other parts of the same copy of a model, as its DTensor parameters tell."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from scaleproof.observe.model import is_dtensor, is_fsdp2_unit


def model_peers(roots: Iterable[nn.Module]) -> tuple[int, ...]:
    """Ranks of all axes over which parameters are split, this one's included; empty when there are
    none, or it can't be told.

    Not model parallelism in this sense: axes along which gradients are averaged, which are those of
    FSDP and DDP (experts that are spread over data-parallel ranks are such); experts that are
    joined in one tensor; and parameters that are gathered whole before each use.
    """
    modules = [module for root in roots for module in root.modules()]
    averaging = _averaging_ranks(modules)
    if averaging is None:
        return ()
    peers: set[int] = set()
    for parameter in _split_parameters(modules):
        for ranks in _axes(parameter):
            if len(ranks) > 1 and len(ranks & averaging) < 2:
                peers |= ranks
    return tuple(sorted(peers))


def _averaging_ranks(modules: list[nn.Module]) -> set[int] | None:
    """This rank and those it averages gradients with; None when FSDP2 does not say."""
    ranks: set[int] = set()
    for module in modules:
        if isinstance(module, DistributedDataParallel):
            ranks |= set(dist.get_process_group_ranks(module.process_group))
        elif is_fsdp2_unit(module):
            of_unit = _fsdp_ranks(module)
            if of_unit is None:
                return None
            ranks |= of_unit
    return ranks


def _fsdp_ranks(unit: Any) -> set[int] | None:
    """Of its mesh, or meshes; empty for a unit without parameters; None when it does not say."""
    state = unit._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [group for group in [getattr(state, "_fsdp_param_group", None)] if group]
    meshes = [getattr(getattr(group, "mesh_info", None), "mesh", None) for group in groups]
    if None in meshes:
        return None
    return {rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()}  # type: ignore[union-attr]


def _split_parameters(modules: list[nn.Module]) -> Iterator[Any]:
    for module in modules:
        for name, parameter in module._parameters.items():
            # A class attribute in its place computes what forward uses from it.
            is_computed = isinstance(inspect.getattr_static(type(module), name, None), property)
            is_original = isinstance(module, ParametrizationList)
            if (
                is_dtensor(parameter)
                and not is_computed
                and not is_original
                and _is_matrix(parameter)
            ):
                yield parameter


def _is_matrix(parameter: Any) -> bool:
    """Or a vector. Weights of several experts in one tensor are often spread over ranks that are
    each fed samples of their own."""
    return parameter.dim() <= 2


def _axes(parameter: Any) -> Iterator[set[int]]:
    """The ranks of each axis of its mesh along which it is split."""
    mesh = parameter.device_mesh
    here = mesh.get_coordinate()
    if here is None:
        return
    for axis, placement in enumerate(parameter.placements):
        if not placement.is_replicate() and not placement.is_partial():
            index = tuple(slice(None) if i == axis else at for i, at in enumerate(here))
            yield set(mesh.mesh[index].tolist())
