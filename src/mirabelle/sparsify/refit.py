"""Layer-wise reconstruction of a sparse network: the weights that are left, fitted so that every layer gives what it gave before. No labels are needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from mirabelle.batchnorm import reestimate_batchnorm
from mirabelle.checks import clone
from mirabelle.data import batches
from mirabelle.moments import flat, has_rows, moments, order, put_flat, ridge
from mirabelle.progress import bar
from mirabelle.sparsify.masks import enforce

ITERATIONS = 100
TOLERANCE = 1e-4  # of the first residual, for each output


def solve_on_support(gram: torch.Tensor, moment: torch.Tensor, weights: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """W' = W + argmin over D on the support of ||A (W + D) - Y||² + r ||D||²: for each output (a column) a ridge regression on the inputs that it still reads.

    gram: A'A (d, d). moment: A'Y (d, outputs). weights, support: (d, outputs), weights zero off the support. All float64.
    Every output has a support, and so a matrix, of its own; conjugate gradients need only the one product with A'A for all of them (Hestenes & Stiefel 1952), with
    the diagonal as the preconditioner, until the residual is TOLERANCE of the first or ITERATIONS are over; each iteration lessens the error.
    The solution is Optimal Brain Surgeon's for removing all that is off the support at once (Hassibi & Stork 1993, eq. 3), which SparseGPT approaches column by column.
    """
    matrix = gram + ridge(gram)
    scale = matrix.diagonal()[:, None]
    change = torch.zeros_like(weights)
    residual = (moment - gram @ weights) * support
    direction = residual / scale
    size = first = (residual * direction).sum(0)
    for _ in range(ITERATIONS):
        open_ = size > TOLERANCE**2 * first
        if not bool(open_.any()):
            break
        product = (matrix @ direction) * support
        step = torch.where(open_, size / (direction * product).sum(0).clamp_min(1e-300), 0.0)
        change += step * direction
        residual -= step * product
        scaled = residual / scale
        following = (residual * scaled).sum(0)
        direction = scaled + torch.where(open_, following / size.clamp_min(1e-300), 0.0) * direction
        size = torch.where(open_, following, size)
    return weights + change


def refit(sparse: nn.Module, original: nn.Module, pruned: Mapping[str, torch.Tensor], data: Iterable, count: int) -> nn.Module:
    """A copy of `sparse` with the layers that lost weights fitted again, in the order of execution; see `solve_on_support`.

    pruned: masks of the parameters, True where a weight is gone. A are a layer's inputs in the network as mended so far, Y its outputs in `original`, on `count` batches of
    `data`. Layers whose inputs are no rows, or that run several times in a pass, are left as they are. BatchNorm's statistics are estimated anew at the end.
    """
    training = {n: m.training for n, m in sparse.named_modules()}
    result, reference = clone(sparse).eval(), clone(original).eval()
    names = {n.rpartition(".")[0]: n for n, mask in pruned.items() if bool(mask.any())}
    readers = [path for path in names if has_rows(reference.get_submodule(path))]
    layers = order(reference, readers, next(iter(batches(data, 1, what="data"))))
    with torch.no_grad(), bar("least squares", len(layers)) as shown:
        for path in layers:
            module = result.get_submodule(path)
            weights = flat(module)
            support = torch.ones_like(weights)
            support[:-1] = (~pruned[names[path]]).flatten(1).T
            put_flat(module, solve_on_support(*moments(reference, result, path, data, count), weights, support))
            enforce(result, {names[path]: pruned[names[path]]})
            shown.advance()
    for name, module in result.named_modules():
        module.training = training[name]
    return reestimate_batchnorm(result, data, count)
