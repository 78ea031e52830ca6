"""Low rank: a linear layer or a convolution as two thinner ones, fitted to what the layer reads and
to what depends on what it gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mirabelle.base.checks import check_runs, clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, SurgeryError
from mirabelle.base.keep import covers
from mirabelle.base.knapsack import Menus, least_loss
from mirabelle.base.progress import track
from mirabelle.fitting.gram import Gram, gram_matrices, has_rows, ridge
from mirabelle.graph.proof import difference, random_like
from mirabelle.graph.structure import in_two, replace_module
from mirabelle.pruning.brain_surgeon import about_mean, root_of_sensitivity, scaled_to_trials
from mirabelle.pruning.stats import MOST_COLUMNS, trial_on

Trial = Callable[[dict[str, torch.Tensor]], float]  # see `Stats.trial`
FEWEST = 4  # ranks of a layer
SENSITIVITY = 1e-2  # of F's mean diagonal: few samples leave directions of which they say nothing


@dataclass(frozen=True)
class Candidate:
    """A layer that may become two, with a weight of (outputs, columns) as a matrix. positions: of
    one sample, for which it is computed.
    """

    path: str
    outputs: int
    columns: int
    positions: float

    @property
    def macs(self) -> float:
        """Of one sample."""
        return self.positions * self.outputs * self.columns

    def ranks(self, align: int) -> list[int]:
        """The ranks at which two layers are cheaper than one: multiples of `align`, or of less
        where that would leave under FEWEST.
        """
        most = (self.outputs * self.columns - 1) // (self.outputs + self.columns)
        step = max(1, min(align, most // FEWEST))
        return list(range(step, most + 1, step))


@dataclass(frozen=True)
class Spectrum:
    """The best factors of one layer at every rank r: `basis[:, :r] @ rows[:r]` projects its
    weights. losses: (n,) what the network's outputs lose without each direction, the largest first.
    mean: (columns,) of what the layer reads, zero where it is not known.
    """

    weight: torch.Tensor
    basis: torch.Tensor
    rows: torch.Tensor
    losses: torch.Tensor
    mean: torch.Tensor

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(outputs, rank) and (rank, columns), whose product is the weight at this rank; of each
        direction both have the same length.
        """
        second, first = self.weight @ self.basis[:, :rank], self.rows[:rank]
        size = (second.norm(dim=0) / first.norm(dim=1).clamp_min(1e-30)).sqrt().clamp_min(1e-30)
        return second / size, first * size[:, None]

    def at(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight at this rank, and what the bias must make up for: (outputs,)."""
        second, first = self.factors(rank)
        product = second @ first
        return product, (self.weight - product) @ self.mean


def spectrum(weight: torch.Tensor, known: Gram | None = None) -> Spectrum:
    """The factors of a weight (outputs, columns) that lose least of the network's outputs.

    With G = A'A of the layer's inputs about their mean and F the network's dependence on what it
    gives (`Gram.sensitivity`), a change D of the weight loses tr(F D G D'). With G = L L', F = R'R
    and R W L = U S V', the best D of rank r leaves W L V_r V_r' L^-1, and loses the sum of the
    squares of the other singular values (Eckart & Young 1936, in the norms of F and G; for
    convolutions Zhang et al. 2016, section 3.1). Without `known` G is 1, and the loss that of the
    weight's own energy. A weight of rank r is found again exactly.
    """
    w = weight.detach().cpu().double().flatten(1)
    if known is None:
        left = torch.eye(w.shape[1], dtype=w.dtype)
        root = torch.eye(len(w), dtype=w.dtype) / w.norm().clamp_min(1e-30)
        mean = w.new_zeros(w.shape[1])
    else:
        gram = known.matrix[0].cpu()
        spread = about_mean(gram)
        mean = gram[-1, :-1] / gram[-1, -1]
        root = root_of_sensitivity(known, slice(0, len(w)), w, spread, SENSITIVITY)
        left = torch.linalg.cholesky(spread + ridge(gram, float(gram[-1, -1]))[:-1, :-1])
    _, values, vectors = torch.linalg.svd(root @ w @ left, full_matrices=False)
    rows = torch.linalg.solve_triangular(left, vectors, upper=False, left=False)
    return Spectrum(w, left @ vectors.T, rows, values.square(), mean)


def candidates(
    model: nn.Module, inputs: Batch, keep: list[str]
) -> tuple[list[Candidate], dict[str, str]]:
    """The layers that may become two, and by path of the other linear layers and convolutions why
    they may not.
    """
    refused, open_ = {}, {}
    shared = Counter(
        id(p)
        for _, m in model.named_modules(remove_duplicate=False)
        for p in m._parameters.values()
        if p is not None
    )
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        if covers(keep, path, f"{path}.weight"):
            refused[path] = "keep names it"
        elif type(module) not in (nn.Linear, nn.Conv2d) or not has_rows(module):
            refused[path] = f"it is a {type(module).__name__} of another kind"
        elif getattr(module, "groups", 1) > 1:
            refused[path] = "its convolution has groups"
        elif any(shared[id(p)] > 1 for p in module.parameters()):
            refused[path] = "its weights are shared with another layer"
        elif module._forward_hooks or module._forward_pre_hooks:
            refused[path] = "it has hooks"
        else:
            open_[path] = module
    positions = _positions(model, inputs, open_)
    found = []
    for path, module in open_.items():
        outputs, columns = module.weight.flatten(1).shape
        if path not in positions:
            refused[path] = "the network reads its weights without calling it"
        elif not Candidate(path, outputs, columns, 1.0).ranks(1):
            refused[path] = "two layers of any rank would cost more"
        else:
            found.append(Candidate(path, outputs, columns, positions[path]))
    return found, refused


def _positions(
    model: nn.Module, inputs: Batch, layers: Mapping[str, nn.Module]
) -> dict[str, float]:
    """By layer that is called, how many positions of one sample it computes."""
    probe, counted = clone(model).eval(), Counter()

    def count(name: str, outputs: int):
        def add(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            counted[name] += output.numel() // outputs

        return add

    handles = [
        probe.get_submodule(n).register_forward_hook(count(n, len(m.weight)))  # type: ignore[arg-type]
        for n, m in layers.items()
    ]
    check_runs(probe, inputs, "the example input")
    for handle in handles:
        handle.remove()
    return {name: n / max(1, inputs.size) for name, n in counted.items()}


def with_biases(model: nn.Module, layers: Iterable[Candidate]) -> nn.Module:
    """A copy that computes the same, in which each of the layers has a bias."""
    found = clone(model)
    for layer in layers:
        module = found.get_submodule(layer.path)
        if module.bias is None:
            weight = module.get_parameter("weight")
            module.bias = nn.Parameter(
                weight.new_zeros(len(weight)), requires_grad=weight.requires_grad
            )
    return found


@dataclass(frozen=True)
class Table:
    """The menu of each layer: its ranks, and what the network's outputs lose at each. lent: the
    network `model`, in which every candidate has a bias where data is known.
    """

    model: nn.Module
    lent: nn.Module
    layers: dict[str, Candidate]
    spectra: dict[str, Spectrum]
    ranks: dict[str, list[int]]
    losses: dict[str, np.ndarray]

    def chosen(self, saved: float, params: bool) -> dict[str, int]:
        """The ranks that lose least and save so many parameters, or multiply-accumulates of one
        sample, by layer. Layers that stay as they are are not named.
        """
        costs = {n: self.costs(n, params) for n in self.layers}
        menus = Menus(
            {n: np.append(found, 0.0) for n, found in self.losses.items()},
            lambda choice: self._whole(params) + sum(float(costs[n][e]) for n, e in choice.items()),
            lambda choice, name: costs[name],
        )
        choice = least_loss(menus, self._whole(params) - saved)
        return {n: self.ranks[n][e] for n, e in choice.items() if e < len(self.ranks[n])}

    def _whole(self, params: bool) -> float:
        return sum(c.outputs * c.columns if params else c.macs for c in self.layers.values())

    def costs(self, name: str, params: bool) -> np.ndarray:
        """What each rank costs more than the layer as it is, and 0 for that, at the end."""
        layer = self.layers[name]
        each, whole = layer.outputs + layer.columns, layer.outputs * layer.columns
        found = np.array([rank * each - whole for rank in self.ranks[name]], float)
        if params:
            found += self._added(name)
        else:
            found *= layer.positions
        return np.append(found, 0.0)

    def _added(self, name: str) -> int:
        """Parameters of a bias that the layer has not had."""
        had = self.model.get_submodule(name).bias is not None
        lent = self.lent.get_submodule(name).bias is not None
        return self.layers[name].outputs if lent and not had else 0

    def most(self, params: bool) -> float:
        """How much can be saved at most."""
        return -sum(float(self.costs(n, params).min()) for n in self.layers)


def table(model: nn.Module, layers: list[Candidate], data: list[Batch] | None, align: int) -> Table:
    """The menus of the layers. What each rank loses is predicted from the spectrum and, with data,
    scaled to the errors of the network's outputs at two ranks that are tried out.
    """
    lent, grams, trial = model, {}, None
    if data is not None:
        lent = with_biases(model, layers)
        small = [c.path for c in layers if c.columns <= MOST_COLUMNS]
        grams = gram_matrices(lent, small, data)
        trial = trial_on(lent, data)
    spectra, losses, ranks = {}, {}, {}
    for layer in track(layers, "what ranks are worth", len(layers)):
        name = layer.path
        weight = lent.get_submodule(name).get_parameter("weight")
        found = spectra[name] = spectrum(weight, grams.get(name))
        ranks[name] = layer.ranks(align)
        losses[name] = _losses(lent, layer.path, found, ranks[name], trial)
    return Table(model, lent, {c.path: c for c in layers}, spectra, ranks, losses)


def _losses(
    lent: nn.Module, name: str, found: Spectrum, ranks: list[int], trial: Trial | None
) -> np.ndarray:
    """What the outputs lose at each rank: the sum over the directions that it leaves out."""
    gone = found.losses.flip(0)
    count = len(gone)
    if trial is not None:
        tried = {count - ranks[-1], count - ranks[len(ranks) // 2]}
        gone = scaled_to_trials(
            gone, tried, lambda less: trial(changed(lent, {name: count - less}, {name: found}))
        )
    lost = gone.cumsum(0)
    return np.array([float(lost[count - rank - 1]) for rank in ranks])


def changed(
    network: nn.Module, ranks: Mapping[str, int], spectra: Mapping[str, Spectrum]
) -> dict[str, torch.Tensor]:
    """The parameters of the layers at these ranks, still as one layer each."""
    found = {}
    for name, rank in ranks.items():
        module = network.get_submodule(name)
        weight, shift = spectra[name].at(rank)
        old = module.get_parameter("weight")
        found[f"{name}.weight"] = weight.reshape(old.shape).to(old)
        if module.bias is not None:
            bias = module.get_parameter("bias").detach()
            found[f"{name}.bias"] = (bias.cpu().double() + shift).to(bias)
    return found


def factorized(known: Table, ranks: Mapping[str, int], inputs: Batch) -> nn.Module:
    """A copy of the network in which these layers are two. `SurgeryError` where it does not give
    what the network gives with the products of both in their place.
    """
    result = clone(known.model)
    one = changed(known.lent, ranks, known.spectra)
    for name, rank in ranks.items():
        layer = result.get_submodule(name)
        pair = in_two(layer, rank, f"{name}.bias" in one)
        with torch.no_grad():
            for place, factor in enumerate(reversed(known.spectra[name].factors(rank))):
                weight = pair.get_parameter(f"{place}.weight")
                weight.copy_(factor.reshape(weight.shape))
            if f"{name}.bias" in one:
                pair.get_parameter("1.bias").copy_(one[f"{name}.bias"])
        replace_module(result, name, pair)
    _check_equal(known.lent, one, result, inputs)
    return result


def _check_equal(
    lent: nn.Module, one: Mapping[str, torch.Tensor], result: nn.Module, inputs: Batch
) -> None:
    expected = clone(lent)
    with torch.no_grad():
        for name, tensor in one.items():
            expected.get_parameter(name).copy_(tensor)
    batches = [inputs, random_like(inputs)]
    for batch, what in zip(batches, ("the example input", "inputs drawn at random"), strict=True):
        try:
            wanted = check_runs(expected, batch.map(torch.clone), what)
        except InputError:
            if batch is inputs:
                raise
            continue  # the example's own values are the only ones that we know it takes
        try:
            problem = difference(wanted, check_runs(result, batch.map(torch.clone), what))
        except InputError as error:
            problem = str(error)
        if problem:
            raise SurgeryError(
                f"the factorized network is not the original with weights of these ranks: "
                f"{problem}; its forward probably reads a layer's attributes, as in "
                "layer.weight.dtype: name the layers concerned in keep=[...]"
            )
