"""Surgery: removing channels from a copy of the user's own module, which stays their class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mirabelle.checks import check_runs, clone
from mirabelle.data import Batch
from mirabelle.errors import InputError, SurgeryError
from mirabelle.graph.groups import Coupling


def remove(model: nn.Module, coupling: Coupling, removed: Mapping[str, torch.Tensor], inputs: Batch) -> nn.Module:
    """A copy of `model` without the channels `removed[group name]` (numbers of channels, 0 .. C-1).

    Raises `InputError` for a group that is not there or that would lose all its channels, `SurgeryError` where the network cannot run
    at its new sizes or does not compute on `inputs` what `mask` computes.
    """
    gone = indices(coupling, removed)
    masked = mask(model, coupling, removed)
    expected = check_runs(masked, inputs, "the example input")
    small = clone(model)
    tensors = dict(small.named_parameters(remove_duplicate=False)) | dict(small.named_buffers(remove_duplicate=False))
    dims: dict[str, dict[int, torch.Tensor]] = {}
    for (name, dim), index in gone.items():
        dims.setdefault(name, {})[dim] = index
    new = {}
    for name, by_dim in dims.items():
        tensor = tensors[name].detach()
        for dim, index in by_dim.items():
            kept = torch.ones(tensor.shape[dim], dtype=torch.bool)
            kept[index] = False
            tensor = tensor.index_select(dim, kept.nonzero()[:, 0].to(tensor.device))
        new[name] = tensor
    replace_tensors(small, new)
    try:
        found = check_runs(small, inputs, "the example input after pruning")
    except InputError as error:
        raise SurgeryError(
            f"the pruned network does not run ({error}); its forward probably has sizes written into it: "
            "take them from the tensors (x.shape), or name the layers concerned in keep=[...]"
        ) from error
    error = difference(expected, found)
    if error is not None and difference(expected, check_runs(masked, inputs, "the example input")) is None:  # else its forward is random
        raise SurgeryError(
            f"the pruned network is not the original without the removed channels ({error}); its forward probably has sizes written into it: "
            "take them from the tensors (x.shape), or name the layers concerned in keep=[...]"
        )
    return small


def difference(expected: Any, found: Any) -> str | None:
    """How two outputs of a network, nested or not, differ: in shapes, or in values by more than rounding; None where they do not."""
    leaves, others = ([v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)] for output in (expected, found))
    shapes, other_shapes = [tuple(v.shape) for v in leaves], [tuple(v.shape) for v in others]
    if shapes != other_shapes:
        return f"its outputs have the shapes {other_shapes}, expected {shapes}"
    for a, b in zip(leaves, others, strict=True):
        if a.is_floating_point():
            error, size = ((t.double().nan_to_num(posinf=0, neginf=0)).norm() for t in (a - b, a))
            if error > max(1e-3, torch.finfo(a.dtype).eps ** 0.5) * size:
                return f"its output differs by {float(error / size):.2g} of its size"
    return None


def indices(coupling: Coupling, removed: Mapping[str, torch.Tensor]) -> dict[tuple[str, int], torch.Tensor]:
    """For each (parameter, dimension) the indices that go."""
    by_name = {g.name: g for g in coupling.groups}
    gone: dict[tuple[str, int], list[torch.Tensor]] = {}
    for name, channels in removed.items():
        if name not in by_name:
            raise InputError(f"there is no group {name!r}; the groups are {', '.join(by_name) or 'none'}")
        group = by_name[name]
        channels = torch.as_tensor(channels, dtype=torch.int64).reshape(-1).unique()
        if len(channels) >= group.channels:
            raise InputError(f"group {name!r} would lose all its {group.channels} channels; leave at least one")
        if len(channels) and not 0 <= int(channels.min()) <= int(channels.max()) < group.channels:
            raise InputError(f"group {name!r} has channels 0 to {group.channels - 1}, got {int(channels.min())} to {int(channels.max())}")
        for slot in group.slots:
            gone.setdefault((slot.parameter, slot.dim), []).append(slot.index[channels].reshape(-1))
    return {key: torch.cat(parts) for key, parts in gone.items() if sum(map(len, parts))}


def mask(model: nn.Module, coupling: Coupling, removed: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of full size in which nothing reads the removed channels: the reference that surgery must equal (masking equivalence)."""
    masked = clone(model)
    tensors = dict(masked.named_parameters(remove_duplicate=False)) | dict(masked.named_buffers(remove_duplicate=False))
    readers = {(s.parameter, s.dim) for g in coupling.groups for s in g.with_role("in")}
    with torch.no_grad():
        for (name, dim), index in indices(coupling, removed).items():
            if (name, dim) in readers:
                tensors[name].index_fill_(dim, index.to(tensors[name].device), 0)
    return masked


def replace_tensors(model: nn.Module, new: Mapping[str, torch.Tensor]) -> None:
    """Puts tensors of other sizes in the place of parameters and buffers, wherever they are shared, and mends the modules' size attributes."""
    by_id: dict[int, torch.Tensor] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in new.items():
        old = tensors[name]
        by_id[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    for module in model.modules():
        old_shapes = {k: tuple(p.shape) for k, p in module._parameters.items() if p is not None}
        changed = False
        for table in (module._parameters, module._buffers):
            for key, value in table.items():
                if value is not None and id(value) in by_id:
                    table[key] = by_id[id(value)]  # type: ignore[assignment]
                    changed = True
        if changed:
            _mend_sizes(module, old_shapes)


def _mend_sizes(module: nn.Module, old_shapes: dict[str, tuple[int, ...]]) -> None:
    """Attributes that repeat a size of the weights: they must say what the weights say."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, torch.Tensor):
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise
            module.groups = weight.shape[0] // (old_shapes["weight"][0] // module.groups)
        first, second = weight.shape[0], weight.shape[1] * module.groups
        module.in_channels, module.out_channels = (first, second) if module.transposed else (second, first)
    elif isinstance(module, nn.Linear) and isinstance(weight, torch.Tensor):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vectors = [t for t in (module.weight, module.running_mean) if t is not None]
        if vectors:
            module.num_features = len(vectors[0])
    elif isinstance(module, nn.PReLU) and isinstance(weight, torch.Tensor):
        module.num_parameters = len(weight)
