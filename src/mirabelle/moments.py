"""What a layer reads: its inputs as the rows of a matrix, and the sums of their products."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.checks import clone, running
from mirabelle.data import Batch, batches
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
    return (RIDGE * gram.diagonal().mean()).clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


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


class _ReachedError(Exception):
    """Stops a forward pass at the layer that was waited for."""


def order(model: nn.Module, names: Iterable[str], batch: Batch) -> list[str]:
    """Those of the modules `names` that run once for a batch, in the order in which they run."""
    seen: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, args: seen.append(name)

    hooks = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        with torch.no_grad():
            few = batch.head(1)
            model(*few.args, **few.kwargs)
    finally:
        for handle in hooks:
            handle.remove()
    return [n for n in seen if seen.count(n) == 1]


def _seen_by(model: nn.Module, name: str, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer `name` reads and gives; the rest of the network does not run."""
    found: list[torch.Tensor] = []

    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        found.extend((args[0], output))
        raise _ReachedError

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        model(*batch.args, **batch.kwargs)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0], found[1]


def flat(module: nn.Module) -> torch.Tensor:
    """The weights of a layer that has rows as (columns + 1, outputs) in float64: its output is `rows @ flat`. The last row is the bias, zero where there is none."""
    weight = module.weight.detach()
    bias = module.bias.detach() if module.bias is not None else weight.new_zeros(len(weight))
    return torch.cat([weight.flatten(1), bias[:, None]], 1).T.double()  # type: ignore[operator]


def put_flat(module: nn.Module, weights: torch.Tensor) -> None:
    """Puts what `flat` gave back, changed. Where the layer has no bias, the last row is left out."""
    with torch.no_grad():
        found = weights.T.to(module.weight.dtype)  # type: ignore[arg-type]
        module.weight.copy_(found[:, :-1].reshape(module.weight.shape))  # type: ignore[operator]
        if module.bias is not None:
            module.bias.copy_(found[:, -1])  # type: ignore[operator]


def moments(
    reference: nn.Module, result: nn.Module, name: str, data: Iterable, count: int, kept: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A'A and A'Y in float64, on `count` batches of `data`: A are the rows that the layer reads in `result`, Y its outputs in `reference` (those `kept` of them)."""
    module = result.get_submodule(name)
    device = next(module.parameters()).device
    gram: torch.Tensor | float = 0.0
    moment: torch.Tensor | float = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in batches(data, count, what="data"):
        batch = batch.map(lambda t: t.to(device))
        inputs, _ = _seen_by(result, name, batch)
        _, outputs = _seen_by(reference, name, batch)
        if kept is not None:
            outputs = outputs.index_select(1 if isinstance(module, nn.Conv2d) else -1, kept.to(device))
        a, y = rows(module, inputs, outputs, generator)
        gram, moment = gram + (a.T @ a).double(), moment + (a.T @ y).double()
    assert isinstance(gram, torch.Tensor) and isinstance(moment, torch.Tensor)
    return gram, moment
