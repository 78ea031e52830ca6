"""`mb.explain`: the groups of a network, and what cannot be pruned and why, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from torch import nn

from mirabelle.base.data import example_inputs, preserved
from mirabelle.base.errors import CaptureError, InputError
from mirabelle.base.terminal import drawn, plain
from mirabelle.channels.blocks import blocks
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.skipping import skipped_blocks
from mirabelle.sources.networks import find


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `str()` of it is a table. `coupling` is None where the network cannot
    be captured: then `problem` says why. blocks: the residual blocks that `prune(depth=True)` may
    skip, by their last layers; skipped: those that have gone.
    """

    coupling: Coupling | None
    problem: str | None = None
    blocks: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        if self.coupling is None:
            return {
                "groups": [],
                "frozen": [],
                "blocks": [],
                "skipped": list(self.skipped),
                "problem": self.problem,
            }
        return {
            "groups": [
                {
                    "name": g.name,
                    "channels": g.channels,
                    "slots": [
                        {"parameter": s.parameter, "dim": s.dim, "role": s.role} for s in g.slots
                    ],
                }
                for g in self.coupling.groups
            ],
            "frozen": [vars(f) for f in self.coupling.frozen],
            "blocks": list(self.blocks),
            "skipped": list(self.skipped),
            "problem": None,
        }

    def __str__(self) -> str:
        if self.coupling is None:
            return f"nothing can be pruned: {self.problem}"
        groups = Table(
            "group",
            "channels",
            "made by",
            "read by",
            title="channels that live and die together",
            title_justify="left",
            box=None if plain() else box.HEAVY_HEAD,
        )
        for g in self.coupling.groups:
            groups.add_row(
                g.name,
                str(g.channels),
                *(
                    ", ".join(s.module or s.parameter for s in g.with_role(r))
                    for r in ("out", "in")
                ),
            )
        frozen = Table(
            "parameter",
            "side",
            "channels",
            "why they are left alone",
            title="left alone",
            title_justify="left",
            box=None if plain() else box.HEAVY_HEAD,
        )
        for f in self.coupling.frozen:
            frozen.add_row(
                f.parameter, "outputs" if f.role == "out" else "inputs", str(f.count), f.reason
            )
        unknown = [
            f"no rule for operator {name} (in {', '.join(sorted(set(places))[:4])}): the channels "
            "that it touches are left alone"
            for name, places in self.coupling.unknown.items()
        ]
        depth = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("residual blocks that may be skipped, by their last layers", self.blocks),
                ("blocks that were skipped", self.skipped),
            )
            if names
        ]
        return drawn(groups, frozen, *depth, *unknown, most=140) + "\n"


@preserved()
def explain(model: nn.Module | str | Path, inputs: Any = None, keep: Any = ()) -> Explanation:
    """The channel groups of `model`, and what cannot be pruned and why.

    - model: a network, or a name of one (`sources.networks`). It stays as it is.
    - inputs: an example, one batch. A file or a name may know its own; then None will do.
    - keep: modules or parameters, by path, whose channels are taken as fixed.

    A network that cannot be captured is explained, not refused: `Explanation.problem` says why.
    Raises `InputError` for wrong arguments and where there is no example.
    Source: dependency groups after Fang et al. 2023 (DepGraph), section 3; here found from labels.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> found = mb.explain(model, torch.zeros(1, 4))
        >>> [(group.name, group.channels) for group in found.coupling.groups]
        [('0', 16)]
    """
    found = find(model)
    inputs = found.example if inputs is None else inputs
    network = found.module(inputs)
    if inputs is None:
        raise InputError("explain needs inputs, an example of what the network takes")
    skipped = skipped_blocks(network)
    try:
        coupling = analyze(network, example_inputs(inputs), keep)
    except CaptureError as error:
        return Explanation(None, str(error), skipped=skipped)
    assert coupling.graph_module is not None
    names = tuple(b.name for b in blocks(coupling.graph_module.graph))
    return Explanation(coupling, None, names, skipped)
