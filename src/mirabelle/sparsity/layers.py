"""The layers that can be sparse, their weights as matrices, and blocks of outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mirabelle.base.keep import check_keep, covers
from mirabelle.fitting.gram import Gram


@dataclass
class ScoredLayer:
    """What a criterion may look at of one layer.

    name: of the weight. module: its path. weight: (outputs, columns) float64, one row an output.
    block: so many outputs share their zeros.
    gram: of what the layer reads and of what depends on what it gives (`gram_matrices`),
    where it has rows and data was given.
    changes: (units of outputs, columns), the mean over the batches of the squared first-order
    change of the loss without the unit, where the criterion needs gradients.
    """

    name: str
    module: str
    weight: torch.Tensor
    block: int = 1
    gram: Gram | None = None
    changes: torch.Tensor | None = None


def by_block(values: torch.Tensor, block: int) -> torch.Tensor:
    """(outputs, columns) -> (units, columns): sums over blocks of `block` outputs. The last block
    may have fewer.
    """
    outputs, columns = values.shape
    missing = -outputs % block
    if missing:
        values = torch.cat([values, values.new_zeros(missing, columns)])
    return values.reshape(-1, block, columns).sum(1)


def spread(units: torch.Tensor, block: int, outputs: int) -> torch.Tensor:
    """(units, columns) -> (outputs, columns): every output of a block gets what the block has."""
    return units.repeat_interleave(block, 0)[:outputs]


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a layer as (outputs, columns)."""
    return weight.detach().flatten(1)


def candidates(model: nn.Module, keep: Iterable[str]) -> dict[str, str]:
    """Weights that can be sparse, by name, and the paths of their modules: those of linear layers
    and of convolutions without groups, and not in `keep`.

    Grouped and depthwise convolutions have few weights, and no runtime has sparse kernels for them.
    A weight that several modules share counts once.
    keep: modules (with all in them) or parameters left alone. `InputError` for one that is not
    there.
    """
    modules, parameters = (
        dict(model.named_modules()),
        dict(model.named_parameters(remove_duplicate=False)),
    )
    kept = check_keep(model, keep)
    found: dict[str, str] = {}
    seen: set[int] = set()
    for path, module in modules.items():
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1
        )
        name = f"{path}.weight" if path else "weight"
        if not plain or covers(kept, name, path) or name not in parameters:
            continue
        if id(parameters[name]) not in seen and parameters[name].is_floating_point():
            seen.add(id(parameters[name]))
            found[name] = path
    return found
