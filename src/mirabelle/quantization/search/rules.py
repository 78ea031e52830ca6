"""`threshold="auto"`: for each tensor the rule whose clipping and rounding changes the network's
outputs least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.graph.capture import operator
from mirabelle.quantization.calibration.observation import PixelByPixel
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer

# The first is taken where outputs do not tell.
RULES = ("mse", "laplace", "weighted-mse")
# Of tensors with values on both sides of zero, where grids are affine.
SIGNED = (*RULES, *(f"{name} around zero" for name in RULES))
HELD = 32  # samples
# Draws of noise for each sample: inputs of fewer than SMALL numbers cost little.
PROBES, SMALL = 8, 2**17


def held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches with about HELD samples, spread over all, and the others. Where all are fewer than
    four times HELD they are both.
    """
    every = sum(b.size for b in batches) // HELD
    if every < 4 or len(batches) < 2 * every:
        return list(batches), list(batches)
    return list(batches[::every]), [b for i, b in enumerate(batches) if i % every]


def best_rules(
    network: fx.GraphModule,
    grids: Mapping[str, Sequence[ActivationQuantizer]],
    data: Iterable[Batch],
) -> dict[str, int]:
    """By the name of a site, which of its `grids` changes the outputs least.

    What a grid makes of a value is off by e, and the outputs by J e in first order. For noise n of
    variance 1 the mean of (n J e)^2 is the squared error of the outputs (Hutchinson): one pass
    back with n gives J' n for all sites. The sum over a tensor comes before the square, so errors
    of one sign add up and others cancel. Sites that outputs do not depend on, or only through nodes
    that torch cannot derive, keep their first grid.
    """
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in grids}
    batches = list(data)
    with bar("choosing thresholds", len(batches)) as shown:
        for batch in batches:
            run = _Kept(network, set(grids))
            with torch.enable_grad():
                out = run.on(batch)
            values = list(run.kept.values())
            for left in reversed(range(max(1, min(PROBES, SMALL // max(1, batch.numbers))))):
                with torch.enable_grad():
                    drawn = _drawn(out, generator)
                if drawn is None:
                    return dict.fromkeys(grids, 0)
                back = torch.autograd.grad(drawn, values, retain_graph=left > 0, allow_unused=True)
                for (name, value), gradient in zip(run.kept.items(), back, strict=True):
                    if gradient is not None:
                        errors[name].append(_squared(value.detach(), gradient, grids[name]))
            shown.advance()
    return {n: _least(torch.cat(e, 1)) if e else 0 for n, e in errors.items()}


def _least(errors: torch.Tensor) -> int:
    """The grid with the least mean error, of (grids, draws), if it is below the first one's by
    more than the standard error of the difference.
    """
    best = int(errors.mean(1).nan_to_num(math.inf).argmin())
    gain = errors[0] - errors[best]
    return best if float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5 else 0


def _squared(
    value: torch.Tensor, gradient: torch.Tensor, grids: Sequence[ActivationQuantizer]
) -> torch.Tensor:
    """(grids, samples): (n J e)^2 of each."""

    def along(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1) if x.ndim < 3 else x.sum(list(range(1, x.ndim)))

    value, gradient = (t if t.ndim > 1 else t.reshape(1, -1) for t in (value, gradient))
    found = []
    with torch.no_grad():
        exact = along(value * gradient)
        for q in grids:
            scale, zero = float(q.scale), q.zero_point
            steps = (value / scale).round_().clamp_(q.low - zero, q.high - zero).mul_(gradient)
            found.append((along(steps) * scale - exact).square().double())
    return torch.stack(found)


def _drawn(outputs: Any, generator: torch.Generator) -> torch.Tensor | None:
    """The outputs times noise, summed; None where none of them has a gradient."""
    floating = [
        torch.view_as_real(t) if t.is_complex() else t
        for t in pytree.tree_leaves(outputs)
        if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    parts = [(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in floating]
    return torch.stack(parts).sum() if parts else None


class _Kept(PixelByPixel):
    """Runs a network and keeps the values of sites, as parts of the autograd graph. Operators that
    write over their input run as those that do not.
    """

    def __init__(self, network: fx.GraphModule, names: set[str]):
        super().__init__(network)
        self.names, self.kept = names, dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        if getattr(n.target, "namespace", "aten") != "aten":  # no gradient goes back through it
            with torch.no_grad():
                return super().run_node(n)
        name = operator(n)
        plain = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        overload = getattr(n.target, "_overloadname", "default")
        if plain is not None and overload in plain.overloads():
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = getattr(plain, overload)(*args, **kwargs)
        else:
            value = super().run_node(n)
        if n.name in self.names and isinstance(value, torch.Tensor) and value.is_floating_point():
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            self.kept[n.name] = value
        return value


def rules_of(
    network: fx.GraphModule,
    names: Mapping[str, Sequence[str]],
    grid: Callable[[str, str], ActivationQuantizer],
    data: Iterable[Batch],
) -> dict[str, str]:
    """By site the name of its rule. names: of the rules that a site has. grid: (site, rule) -> the
    quantizer that the rule gives.
    """
    grids = {site: [grid(site, rule) for rule in rules] for site, rules in names.items()}
    return {site: names[site][i] for site, i in best_rules(network, grids, data).items()}
