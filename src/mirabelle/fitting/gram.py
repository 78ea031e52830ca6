"""What layers read, and what depends on what they give: sums over samples, in one pass for all
layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone, running
from mirabelle.base.data import batches, check_finite, device_of, length_of
from mirabelle.base.progress import track
from mirabelle.fitting.patches import patches
from mirabelle.measurement.accuracy import as_tensor

ROWS_PER_SAMPLE = 32
RIDGE = 3e-2  # of the mean of the diagonal of A'A, where there are ten rows or more for each column
CONSTANT = 1e-3  # of that, for the coefficient of a column of ones
ITERATIONS = 100
TOLERANCE = 1e-4  # of the first residual, for each output


@dataclass
class Gram:
    """Of one layer. matrix: (groups, columns + 1, columns + 1) A'A in float64, A the rows that it
    reads and a column of ones behind.

    sensitivity: (outputs, outputs), so that tr(S E) is by how much the network's outputs change,
    relative to their energy, when the layer's outputs change by errors whose sum of squares over
    the rows of A is E; None where it is not known.
    """

    matrix: Any = 0
    sensitivity: torch.Tensor | None = None


def has_rows(module: nn.Module) -> bool:
    """Whether the layer is a product of rows with its weights, in groups or not: a linear layer, or
    a plain two-dimensional convolution.
    """
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def ridge(gram: torch.Tensor, rows: float, constant: bool = False) -> torch.Tensor:
    """RIDGE * trace(A'A) / columns on the diagonal, as many times more as ten rows for each column
    are more than there are.

    A classifier after a global pool reads one row a sample: what few rows seem to say of many
    columns does not hold for others. Never zero, so that a layer that reads only zeros can be
    solved too. constant: the last column is of ones, whose coefficient, a mean, is known well from
    few rows: it gets CONSTANT of it.
    """
    columns = gram.shape[-1]
    size = (
        RIDGE * max(1.0, 10 * columns / max(rows, 1.0)) * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    ).clamp_min(1e-12)
    diagonal = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if constant:
        diagonal[-1, -1] = CONSTANT
    return size[..., None, None] * diagonal


def solve_on_support(
    gram: torch.Tensor,
    cross: torch.Tensor,
    weights: torch.Tensor,
    support: torch.Tensor,
    rows: float,
) -> torch.Tensor:
    """W' = W + argmin over D on the support of ||A (W + D) - Y||² + r ||D||²: for each output (a
    column) a ridge regression on the inputs that it still reads.

    gram: A'A (..., d, d). cross: A'Y (..., d, outputs). weights, support: (..., d, outputs),
    weights zero off the support. All float64. rows: those of A. Every output has a support, and so
    a matrix, of its own; conjugate gradients need only the one product with A'A for all of them
    (Hestenes & Stiefel 1952), with the diagonal as the preconditioner, until the residual is
    TOLERANCE of the first or ITERATIONS are over; each iteration lessens the error. The solution is
    Optimal Brain Surgeon's for removing all that is off the support at once (Hassibi & Stork 1993,
    eq. 3), which SparseGPT approaches column by column.
    """
    matrix = gram + ridge(gram, rows)
    scale = matrix.diagonal(dim1=-2, dim2=-1)[..., None]
    change = torch.zeros_like(weights)
    residual = (cross - gram @ weights) * support
    direction = residual / scale
    size = first = (residual * direction).sum(-2, keepdim=True)
    for _ in range(ITERATIONS):
        open_ = size > TOLERANCE**2 * first
        if not bool(open_.any()):
            break
        product = (matrix @ direction) * support
        step = torch.where(
            open_, size / (direction * product).sum(-2, keepdim=True).clamp_min(1e-300), 0.0
        )
        change += step * direction
        residual -= step * product
        scaled = residual / scale
        following = (residual * scaled).sum(-2, keepdim=True)
        direction = scaled + torch.where(open_, following / size.clamp_min(1e-300), 0.0) * direction
        size = torch.where(open_, following, size)
    return weights + change


def gram_matrices(
    model: nn.Module, names: Iterable[str], data: Iterable, skip: int = 0
) -> dict[str, Gram]:
    """The Gram matrices of layers on `data`, without the first `skip` samples where the first batch
    has more.

    At most ROWS_PER_SAMPLE random positions of each sample's map are read.

    The network runs in eval mode, as a copy. Its outputs are multiplied by random numbers of
    variance 1 and summed; the mean of the products of that sum's gradients is the Gauss-Newton
    matrix of the squared error of the outputs (Hutchinson), of which each layer gets its block,
    positions taken as independent (as in Martens & Grosse 2015, section 4.2, for convolutions
    Grosse & Martens 2016). No labels are needed. A layer that runs several times in a pass counts
    all of its rows; one that never runs is left out.
    """
    model = clone(model).eval()
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Gram] = {}
    gradients: dict[str, Any] = {}
    outputs = _add_rows(model, names, found, generator)
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    device = device_of(model)
    energy = samples = 0.0
    total: Any = 0
    given = batches(data, what="data")
    for i, batch in enumerate(track(given, "inputs of layers", length_of(data))):
        check_finite(batch, f"batch {i} of data", squares=True)
        first = skip if i == 0 and batch.size > skip else 0
        batch = batch.map(lambda t, first=first: t[first:].to(device) if t.ndim else t.to(device))
        outputs.clear()
        with torch.enable_grad(), running(batch, f"batch {i} of data"):
            z = torch.atleast_1d(as_tensor(batch.run(model)))
            noise = torch.randn(z.shape, generator=generator).to(z)
            for name, g in _drawn_gradients((z * noise).sum(), outputs):
                if isinstance(model.get_submodule(name), nn.Conv2d):
                    g = g.flatten(2).transpose(1, 2)
                g = g.reshape(-1, g.shape[-1])
                gradients[name] = gradients.get(name, 0) + (g.T @ g).double()
        z = z.detach().double()
        energy, total = energy + float(z.square().sum()), total + z.sum(0)
        samples += len(z)
    # of the outputs of one sample, about their mean
    spread = (energy - float(total.square().sum()) / samples) / samples
    for name, product in gradients.items():
        rows = float(found[name].matrix[0, -1, -1])
        found[name].sensitivity = product / (samples * rows * max(spread, 1e-30))
    return found


def _add_rows(
    model: nn.Module, names: Iterable[str], found: dict[str, Gram], generator: torch.Generator
) -> list[tuple[str, torch.Tensor]]:
    """Lets every pass through `model` add what layers read to `found`. Returns the list in which
    each pass leaves the layers' outputs by name.
    """
    outputs: list[tuple[str, torch.Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
        def add(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            a = _rows(module, args[0].detach(), output.detach(), generator)
            a = torch.cat([a, torch.ones_like(a[..., :1])], -1)
            gram = found.setdefault(name, Gram())
            gram.matrix = gram.matrix + (a.transpose(1, 2) @ a).double()
            outputs.append((name, output))
            return output.clone()  # what follows may write into it

        return add

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    return outputs


def _drawn_gradients(
    drawn: torch.Tensor, outputs: list[tuple[str, torch.Tensor]]
) -> list[tuple[str, torch.Tensor]]:
    """The gradients of a number that was drawn, by layer whose outputs it depends on."""
    layers = [(n, y) for n, y in outputs if y.requires_grad]
    if not layers or not drawn.requires_grad:
        return []
    found = torch.autograd.grad(drawn, [y for _, y in layers], allow_unused=True)
    return [(name, g) for (name, _), g in zip(layers, found) if g is not None]


def _rows(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """(groups, rows, columns) what a layer reads."""
    if isinstance(module, nn.Conv2d):
        pick = torch.randperm(y[0, 0].numel(), generator=generator)[:ROWS_PER_SAMPLE]
        assert not isinstance(module.padding, str)  # see `has_rows`
        padding = [(p, p) for p in module.padding]
        settings = module.kernel_size, module.stride, padding, module.dilation, module.groups
        return patches(x, y, *settings, pick)[0]
    return x.reshape(1, -1, x.shape[-1])
