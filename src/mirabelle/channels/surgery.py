"""Surgery: removing channels from a copy of the user's own module, which stays their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mirabelle.base.checks import check_runs, clone, shell
from mirabelle.base.data import Batch
from mirabelle.base.errors import CaptureError, InputError, SurgeryError
from mirabelle.base.quiet import muffled
from mirabelle.channels.groups import Coupling
from mirabelle.channels.masking import Cutting, MaskedReference
from mirabelle.channels.onnx_numbers import cut_file
from mirabelle.channels.rewrite import FORM, Gone, cut_again, graph_form
from mirabelle.channels.sizes import replace_tensors
from mirabelle.graph.capture import inputs_in_order
from mirabelle.graph.proof import FLIPPED, check_comparable, difference, random_like, tensors
from mirabelle.onnx_files.source import source_of


def remove(model: nn.Module, coupling: Coupling, removed: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of `model` without the channels `removed[group name]` (numbers of channels, 0 .. C-1).

    Raises `InputError` for a group that is not there or that would lose all its channels,
    `SurgeryError` where the network cannot run at its new sizes or does not compute what
    `reference` computes, in place or in graph form.
    """
    gone = indices(coupling, removed)
    if not gone:
        return clone(model)
    proofs = _proofs(coupling, gone)
    problems = []
    for make in (_in_place, graph_form):
        try:
            small = make(model, coupling.inputs, gone)
            if make is _in_place and isinstance(small, fx.GraphModule) and source_of(small):
                assert coupling.graph_module is not None and coupling.flow is not None
                cutting = Cutting(coupling.flow, gone)
                cut_file(small, coupling.graph_module, cutting)
            problem = _first_difference(coupling, gone, proofs, small) or _other_batch(
                model, small, coupling.inputs, proofs[0][1]
            )
        except (InputError, CaptureError, SurgeryError) as error:
            problem = str(error)
        else:
            if problem is None or (make is _in_place and _is_random(model, coupling.inputs)):
                return small
        problems.append(problem)
    raise SurgeryError(
        f"the pruned network is not the original without the removed channels ({problems[0]}; "
        f"as a graph: {problems[1]}); its forward probably has sizes "
        "written into it: take them from the tensors (x.shape), or name the layers concerned in "
        "keep=[...]"
    )


def _proofs(coupling: Coupling, gone: Gone) -> list[tuple[Batch, Any]]:
    """Batches with what the network must give for them: the example, and what is drawn at random
    like it, where the network takes that.
    """
    drawn = random_like(coupling.inputs)
    expected = reference(coupling, gone)
    check_comparable(expected)
    try:
        return [(coupling.inputs, expected), (drawn, reference(coupling, gone, drawn))]
    except Exception:  # the example's own values are the only ones that we know it takes
        return [(coupling.inputs, expected)]


def _first_difference(
    coupling: Coupling, gone: Gone, proofs: Sequence[tuple[Batch, Any]], small: nn.Module
) -> str | None:
    """How the outputs of `small` differ from what they must be, on one of the batches: in its own
    type, and in float64, where rounding hides nothing and changes no integer.
    """
    probe = clone(small)
    pairs = [
        (expected, check_runs(probe, batch.map(torch.clone), "the example input after pruning"))
        for batch, expected in proofs
    ]
    found = (difference(*pair, flipped=1.0) for pair in pairs)
    if problem := next(filter(None, found), None):
        return problem
    try:
        exact = [_in_double(coupling, gone, batch, small) for batch, _ in proofs]
    except Exception:  # its forward has a type written into it
        exact = [difference(*pair, FLIPPED) for pair in pairs]
    return next(filter(None, exact), None)


def _in_double(coupling: Coupling, gone: Gone, batch: Batch, small: nn.Module) -> str | None:
    double = batch.map(lambda t: t.double() if t.is_floating_point() else t.clone())
    expected = reference(coupling, gone, double, torch.float64)
    return difference(
        expected, check_runs(clone(small).double(), double, "the example input in float64")
    )


def _other_batch(model: nn.Module, small: nn.Module, inputs: Batch, output: Any) -> str | None:
    """What goes wrong for one sample more, where the original takes it: sizes written into forward
    can hide in one batch size. output: what `small` gives for `inputs`.

    The original is only asked where the outputs do not simply have one sample more.
    """
    more = inputs.map(lambda t: torch.cat([t, t[:1]]) if t.ndim else t)
    try:
        others, problem = _shapes(small, more), None
    except InputError as error:
        others, problem = (
            None,
            f"{error}; the batch is fixed (len(x) fixes it, x.shape[0] does not)",
        )
    if others == [
        (s[0] + 1, *s[1:]) if s else s for s in (tuple(v.shape) for v in tensors(output))
    ]:
        return None
    try:
        shapes = _shapes(model, more)
    except InputError:
        return None
    return problem or (
        None
        if shapes == others
        else f"its outputs have the shapes {others} for one sample more, expected {shapes}"
    )


def _shapes(model: nn.Module, inputs: Batch) -> list[tuple[int, ...]]:
    """The shapes of the network's outputs; these are computed only where they depend on values.
    `InputError` where it does not run.
    """
    copied = shell(model)
    try:
        with muffled(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            output = check_runs(copied, inputs.map(mode.from_tensor), "one sample more")
    except InputError:
        output = check_runs(clone(model), inputs, "one sample more")
    return [tuple(v.shape) for v in tensors(output)]


def reference(
    coupling: Coupling, gone: Gone, inputs: Batch | None = None, dtype: torch.dtype | None = None
) -> Any:
    """What the network must compute without the indices `gone`, on the example that it was analyzed
    with or another of its sizes. dtype: in which its weights are, where not in their own.
    """
    assert coupling.graph_module is not None and coupling.flow is not None
    graph_module = coupling.graph_module
    if dtype is not None:
        graph_module = clone(graph_module).to(dtype)
    few = inputs or coupling.inputs
    with torch.no_grad():
        flat = inputs_in_order(graph_module.graph, few)
        return MaskedReference(graph_module, Cutting(coupling.flow, gone)).run(*flat)


def _is_random(model: nn.Module, inputs: Batch) -> bool:
    """Its forward draws numbers in eval mode too: then nothing can be compared."""
    probe = clone(model)
    first, second = (
        check_runs(probe, inputs.map(torch.clone), "the example input") for _ in range(2)
    )
    return difference(first, second) is not None


def _in_place(model: nn.Module, inputs: Batch, gone: Gone) -> nn.Module:
    """A copy of the network itself, of its own class, with smaller parameters."""
    small = clone(model)
    tensors = dict(small.named_parameters(remove_duplicate=False)) | dict(
        small.named_buffers(remove_duplicate=False)
    )
    new: dict[str, torch.Tensor] = {}
    for (name, dim), index in gone.items():
        tensor = new.get(name, tensors[name].detach())
        kept = torch.ones(tensor.shape[dim], dtype=torch.bool)
        kept[index] = False
        new[name] = tensor.index_select(dim, kept.nonzero()[:, 0].to(tensor.device))
    replace_tensors(small, new)
    meta: Any = getattr(small, "meta", {})
    if form := meta.get(FORM):
        meta[FORM] = cut_again(form, gone)
    return small


def indices(
    coupling: Coupling, removed: Mapping[str, torch.Tensor]
) -> dict[tuple[str, int], torch.Tensor]:
    """For each (parameter, dimension) the indices that go."""
    by_name = {g.name: g for g in coupling.groups}
    gone: dict[tuple[str, int], list[torch.Tensor]] = {}
    for name, channels in removed.items():
        if name not in by_name:
            raise InputError(
                f"there is no group {name!r}; the groups are {', '.join(by_name) or 'none'}"
            )
        group = by_name[name]
        channels = torch.as_tensor(channels, dtype=torch.int64).reshape(-1).unique()
        if len(channels) >= group.channels:
            raise InputError(
                f"group {name!r} would lose all its {group.channels} channels; leave at least one"
            )
        if len(channels) and not 0 <= int(channels.min()) <= int(channels.max()) < group.channels:
            raise InputError(
                f"group {name!r} has channels 0 to {group.channels - 1}, got "
                f"{int(channels.min())} to {int(channels.max())}"
            )
        for slot in group.slots:
            gone.setdefault((slot.parameter, slot.dim), []).append(slot.index[channels].reshape(-1))
    return {key: torch.cat(parts) for key, parts in gone.items() if sum(map(len, parts))}


def mask(model: nn.Module, coupling: Coupling, removed: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of full size in which nothing reads the removed channels: the reference that surgery
    must equal (masking equivalence).
    """
    masked = clone(model)
    tensors = dict(masked.named_parameters(remove_duplicate=False)) | dict(
        masked.named_buffers(remove_duplicate=False)
    )
    readers = {(s.parameter, s.dim) for g in coupling.groups for s in g.with_role("in")}
    with torch.no_grad():
        for (name, dim), index in indices(coupling, removed).items():
            if (name, dim) in readers:
                tensors[name].index_fill_(dim, index.to(tensors[name].device), 0)
    return masked
