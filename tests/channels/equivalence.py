"""Masking equivalence: the pruned network is the original with the removed channels masked."""

import torch
from torch import nn

from mirabelle.base.data import Batch, example_inputs
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.surgery import indices, mask, reference, remove
from mirabelle.measurement import count_macs, count_parameters


def leaves(output):
    return [v for v in torch.utils._pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]


def some(coupling: Coupling, seed: int, share: float = 0.5) -> dict[str, torch.Tensor]:
    """A random removal: about `share` of the channels of each group, never all."""
    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: torch.randperm(g.channels, generator=generator)[
            : min(g.channels - 1, round(share * g.channels))
        ]
        for g in coupling.groups
    }


def state(model: nn.Module) -> dict:
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "training": {n: m.training for n, m in model.named_modules()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "repr": repr(model),
    }


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return (
        torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else a is b or a == b
    )


def another(inputs: Batch, scale: float) -> Batch:
    return inputs.map(lambda t: scale * torch.randn_like(t) if t.is_floating_point() else t.flip(0))


def equivalent(
    model: nn.Module, small: nn.Module, coupling: Coupling, removed: dict, masks: bool = True
) -> bool:
    """Masking equivalence to float64 rounding, on inputs that surgery has not seen too: against the
    reference, which runs the graph node by node, and against the network with masked weights, which
    knows nothing of labels inside it.
    """
    small = small.eval()
    masked = mask(model, coupling, removed).eval()
    with torch.no_grad():
        for scale in (1.0, 3.0):
            inputs = another(coupling.inputs, scale)
            found = leaves(small(*inputs.args))
            for expected in [
                reference(coupling, indices(coupling, removed), inputs),
                *([masked(*inputs.args)] if masks else []),
            ]:
                for a, b in zip(leaves(expected), found, strict=True):
                    if a.shape != b.shape or (a - b).abs().max() > 1e-9 * (1 + a.abs().max()):
                        return False
    return True


def cut_and_check(
    model: nn.Module, x, seed: int, share: float = 0.5, graph: bool = False, masks: bool = True
) -> Coupling:
    inputs = example_inputs(x)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    coupling = analyze(model, inputs)
    removed = some(coupling, seed, share)
    small = remove(model, coupling, removed)
    assert same(before, state(model)), "the network that was given has changed"
    assert isinstance(small, torch.fx.GraphModule) if graph else type(small) is type(model)
    assert small.training
    assert equivalent(model, small, coupling, removed, masks)
    kept = {g.name: g.channels - len(removed[g.name]) for g in coupling.groups}
    assert coupling.macs(kept) == count_macs(small, x)
    assert coupling.macs() == count_macs(model, x)
    trained = [n for n, _ in model.named_parameters()]
    assert {n for n, _ in small.named_parameters()} == set(trained) <= set(coupling.shapes)
    assert coupling.parameters(kept, trained) == count_parameters(small)
    if any(len(r) for r in removed.values()):
        assert count_parameters(small) < count_parameters(model)
    small.train()
    sum(v.double().square().mean() for v in leaves(small(*inputs.args))).backward()
    assert all(
        p.grad is not None and p.grad.shape == p.shape
        for p in small.parameters()
        if p.requires_grad
    )
    return coupling
