"""What a layer reads: its inputs as the rows of a matrix, and the sums of their products."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.checks import clone, running
from mirabelle.data import batches
from mirabelle.progress import track

ROWS_PER_SAMPLE = 32
RIDGE = 1e-3  # of the mean of the diagonal of A'A


def has_rows(module: nn.Module) -> bool:
    """Whether the layer is a product of one matrix of rows with its weights: a linear layer, or a plain two-dimensional convolution."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def rows(module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns + 1) inputs with ones behind, and (rows, outputs), one row an output position; im2col for a convolution.

    At most ROWS_PER_SAMPLE random positions of each sample's map, the same for the whole batch. The columns are in the order of the flattened weights.
    """
    if isinstance(module, nn.Conv2d):
        columns = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        pick = torch.randperm(columns.shape[2], generator=generator)[:ROWS_PER_SAMPLE].to(inputs.device)
        a = columns[:, :, pick].transpose(1, 2).reshape(-1, columns.shape[1])
        y = outputs.flatten(2)[:, :, pick].transpose(1, 2).reshape(-1, outputs.shape[1])
    else:
        a, y = inputs.reshape(-1, inputs.shape[-1]), outputs.reshape(-1, outputs.shape[-1])
    return torch.cat([a, torch.ones_like(a[:, :1])], 1), y


def ridge(gram: torch.Tensor) -> torch.Tensor:
    """RIDGE * trace(A'A) / columns on the diagonal; never zero, so that a layer that reads only zeros can be solved too."""
    size = (RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(1e-12)
    return size[..., None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def input_grams(model: nn.Module, names: Iterable[str], data: Iterable, count: int) -> dict[str, torch.Tensor]:
    """A'A in float64 by layer, with A the rows that the layer reads on `count` batches of `data`: one pass for all layers.

    The network runs in eval mode, as a copy. A layer that runs several times in a pass counts all of its rows; one that never runs is left out.
    """
    model = clone(model).eval()
    grams: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def hook(name: str) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
        def add(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            a, _ = rows(module, args[0], output, generator)
            grams[name] = grams.get(name, 0) + (a.T @ a).double()

        return add

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    device = next(model.parameters()).device
    with torch.no_grad():
        for i, batch in enumerate(track(batches(data, count, what="data"), "inputs of layers", count)):
            batch = batch.map(lambda t: t.to(device))
            with running(batch, f"batch {i} of data"):
                model(*batch.args, **batch.kwargs)
    return grams
