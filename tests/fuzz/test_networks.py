"""Random networks against an oracle that knows nothing of channel ids: what was planted dead goes
without a trace, in outputs of every type, on inputs that surgery has not seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import event, given
from torch.utils import _pytree as pytree

from mirabelle.base.data import as_batch
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.measurement.macs import count_parameters
from mirabelle.pruning.api import prune
from tests.fuzz.planted import BLOCKS, OUTPUTS, SIZE, Plan, build, plans


def living_channels(model: torch.nn.Module, coupling: Coupling) -> dict[str, torch.Tensor]:
    """By group, which channels have a weight that is not zero in any layer that makes them, or a
    bias in one that hands them on: what is constant is not dead.
    """
    tensors = dict(model.named_parameters())
    found = {}
    for group in coupling.groups:
        alive = torch.zeros(group.channels, dtype=torch.bool)
        for slot in group.slots:
            if slot.role == "out" or (slot.role == "along" and slot.parameter.endswith("bias")):
                rows = tensors[slot.parameter].detach().movedim(slot.dim, 0)[slot.index]
                alive |= rows.flatten(1).ne(0).any(1)
        found[group.name] = alive
    return found


def apart(a: Any, b: Any) -> str | None:
    """How two outputs differ by more than 1e-5; whole numbers by anything."""
    leaves, others = pytree.tree_leaves(a), pytree.tree_leaves(b)
    if len(leaves) != len(others):
        return "structure"
    for x, y in zip(leaves, others, strict=True):
        if not isinstance(x, torch.Tensor):
            if x != y:
                return f"{x} and {y}"
        elif x.shape != y.shape or x.dtype != y.dtype:
            return f"{x.shape} {x.dtype} and {y.shape} {y.dtype}"
        elif x.is_floating_point() or x.is_complex():
            if not float((x - y).abs().max()) <= 1e-5 * (1 + float(x.abs().max())):
                return f"by {float((x - y).abs().max()):.2g}"
        elif not torch.equal(x, y):
            return f"in {int((x != y).sum())} whole numbers"
    return None


def check(plan: Plan) -> str:
    model = build(plan)
    x = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    coupling = analyze(model, as_batch(x))
    alive = living_channels(model, coupling)
    dead = {n: min(int((~a).sum()), len(a) - 1) for n, a in alive.items()}
    if not any(dead.values()):
        return "nothing dead"
    kept = {g.name: g.channels - dead[g.name] for g in coupling.groups}
    trained = [n for n, _ in model.named_parameters() if n in coupling.shapes]
    whole, least = coupling.parameters({}, trained), coupling.parameters(kept, trained)
    small = prune(
        model, x, params=(least + 0.5) / whole, criterion=lambda g, _: alive[g.name].float(),
        allocation="global", align=1, least=1e-9, seed=plan.seed,
    )  # fmt: skip
    assert count_parameters(small) == count_parameters(model) - whole + least
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    for scale, count in ((1.0, 3), (5.0, 5), (0.1, 1)):
        y = scale * torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64)
        with torch.no_grad():
            problem = apart(model(y.clone()), small(y.clone()))
        assert problem is None, f"outputs differ {problem}"
    return "in graph form" if isinstance(small, torch.fx.GraphModule) else "in place"


@given(plan=plans)
def test_what_is_planted_dead_goes_without_a_trace(plan):
    event(check(plan))


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_each_block(kind):
    found = check(Plan(6, (("conv", 6, 0), (kind, 4, 2), ("conv", 6, 0)), "nested", 0.5, 3))
    assert found in ("in place", "in graph form")


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_each_output(output):
    check(Plan(6, (("rotated", 6, 2), ("conv", 6, 0)), output, 0.5, 3))


def test_the_oracle_sees_a_living_channel_go():
    """A test that cannot fail is none."""
    model = build(Plan(6, (("conv", 6, 0),), "scores", 0.5, 3))
    x = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    small = prune(model, x, params=0.3, criterion="l1", align=1, least=1e-9)
    with torch.no_grad():
        assert apart(model(x), small(x)) is not None
