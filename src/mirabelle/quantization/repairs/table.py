"""Repair: what is mended in a network that is quantised, without labels. Each is a function that
changes the network in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch, device_of
from mirabelle.base.errors import InputError, choose
from mirabelle.base.progress import bar
from mirabelle.graph.capture import (
    get_tensor,
    inputs_in_order,
    operator,
    parameter_name,
    parameter_uses,
)
from mirabelle.graph.nodes import argument, computed_inputs, optional_argument, value_of
from mirabelle.quantization.forms.qdq import is_contraction_of_quantized, quantized_weight
from mirabelle.quantization.repairs.equalization import Reader, scalable
from mirabelle.quantization.repairs.rounding import learn_rounding
from mirabelle.quantization.repairs.side_by_side import side_by_side
from mirabelle.quantization.simulation.notes import moments_of
from mirabelle.quantization.simulation.operators import (
    AVERAGES,
    RECTIFIERS,
    is_contraction,
    over_space,
    rectifier_bounds,
    unpadded,
)

SWEEPS = 100
DEAD = 2.0**-10  # of the largest channel: what is smaller is as good as dead
SMOOTH = 0.5  # how much of the difficulty goes from the activations to the weights


def equalize(network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]) -> None:
    """Cross-layer equalisation: channels are rescaled until the weights that make each have the
    range of those that read it. The network's output stays the same.

    For a channel i made with weights up to r1 and read with weights up to r2 the factor is sqrt(r1
    / r2), by which the former are divided and the latter multiplied; over and over, as a layer
    makes the channels that it gives and reads others. Nagel et al. 2019, section 4.1, eq. 11, with
    residual additions. Needs no data. Channels that pass through more than ReLU and the like
    (ReLU6, GELU) keep their scale.
    """
    channels = [c for c in scalable(network.graph) if all(is_contraction(m.node) for m in c.makers)]
    for _ in range(SWEEPS):
        change = 0.0
        for c in channels:
            made, read = c.made_range(network), c.read_range(network)
            factors = torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0)
            c.scale(network, factors)
            change = max(change, float(factors.log().abs().max()))
        if change < 1e-3:
            return


def smooth_quant(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """SmoothQuant: channels behind a normalisation are divided by s where the normalisation scales
    them, and their readers' weights multiplied. The output stays the same.

    s = max|x|^a / max|w|^(1 - a) for each channel, a = 0.5, over the batches and the weights that
    read it: transformers have channels far larger than the others, for which a tensor's single step
    is too coarse. Xiao et al. 2023, eq. 4.
    """
    channels = [c for c in scalable(network.graph) if c.normalised]
    largest = _largest(network, [c.readers[0] for c in channels], batches)
    for c in channels:
        x, w = largest[c.readers[0].source], c.read_range(network)
        c.scale(network, torch.where((x > 0) & (w > 0), x**SMOOTH / w ** (1 - SMOOTH), 1.0))


def equalize_activations(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Channels are enlarged towards the largest of their tensor, and the weights that read them
    made smaller, so that the tensor's one step suits them all.

    A channel that reaches m, of the M that the largest reaches on the batches, is multiplied by M /
    m where depthwise layers alone read it, whose filters have a step each, and by sqrt(M / m) where
    layers mix it with others: there the step of the weights costs what the step of the activations
    gains. After Meller et al. 2019, section 3, and Xiao et al. 2023. ReLU6 stays as it is: no
    channel gets larger than M, so that nothing which the batches hold is clipped that was not
    before; what lies beyond them may be, as by a threshold for each channel.
    """
    channels = [c for c in scalable(network.graph, clipped=True) if c.weights]
    largest = _largest(network, [r for c in channels for r in c.readers], batches)
    for c in channels:
        x = torch.stack([largest[r.source].view(c.count, -1).amax(1) for r in c.readers]).amax(0)
        share = torch.where(x > 0, x / x.amax(), 1.0).clamp_min(DEAD)
        c.scale(network, share if all(r.groups == c.count for r in c.readers) else share.sqrt())


def _largest(
    network: fx.GraphModule, readers: Iterable[Reader], batches: Sequence[Batch]
) -> dict[fx.Node, torch.Tensor]:
    """By what the readers read, (C,): the largest absolute value of each channel on the batches."""
    dims = {r.source: -1 if operator(r.node) == "linear" else 1 for r in readers}
    found: dict[fx.Node, torch.Tensor] = {}

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in dims:
                largest = value.abs().amax(
                    [d for d in range(value.ndim) if d != dims[n] % value.ndim]
                )
                found[n] = torch.maximum(found[n], largest) if n in found else largest
            return value

    device = device_of(network)
    with torch.no_grad(), bar("watching channels", len(batches)) as shown:
        for batch in batches:
            Watcher(network, garbage_collect_values=True).run(
                *inputs_in_order(network.graph, batch.to(device))
            )
            shown.advance()
    return found


def correct_bias(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Empirical bias correction: to each layer's bias the mean, over the batches, of what the float
    network's layer gives above the quantised one's.

    In the order of execution, so that each layer sees those before it corrected. Nagel et al. 2019,
    section 4.2 and appendix D.
    """
    uses = parameter_uses(network.graph)
    for layer in side_by_side(network, reference, batches, "correcting biases"):
        if (name := _bias_name(layer.node)) is None or uses[name] > 1:
            continue
        dim = layer.targets[0].ndim - 1 if operator(layer.node) == "linear" else 1
        others = [d for d in range(layer.targets[0].ndim) if d != dim]
        total: Any = sum(
            (t - y).sum(others).double() for t, y in zip(layer.targets, layer.outputs())
        )
        get_tensor(network, name).add_(
            (total / sum(t.numel() // t.shape[dim] for t in layer.targets)).to(layer.targets[0])
        )


def correct_bias_analytically(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Analytic bias correction: from each layer's bias the product of its weights' rounding error
    and the mean of its inputs, which BatchNorm tells.

    What BatchNorm gave is taken as normal with its own shift and scale, through the rectifier a
    clipped normal. Layers whose inputs no BatchNorm describes are left as they are. Needs no data.
    Nagel et al. 2019, section 4.2.1 and appendix C.
    """
    means = {n.name: m for n, (m, _) in _moments(reference.graph).items()}
    uses = parameter_uses(network.graph)
    with torch.no_grad():
        for node in network.graph.nodes:
            if not is_contraction_of_quantized(node, network):
                continue
            source = argument(node, 0)
            source = argument(source, 0) if source.op == "call_module" else source
            name, mean = _bias_name(node), means.get(source.name)
            if name is None or uses[name] > 1 or mean is None:
                continue
            own, quantizer = quantized_weight(network, node)
            error = quantizer(get_tensor(network, own)) - get_tensor(reference, own)
            error = error.reshape(*error.shape[:2], -1).sum(2)  # (outputs, inputs of a group)
            groups = len(mean) // error.shape[1]
            by_group = error.view(groups, -1, error.shape[1]) * mean.to(error).view(groups, 1, -1)
            get_tensor(network, name).sub_(by_group.sum(2).flatten())


def _bias_name(node: fx.Node) -> str | None:
    return parameter_name(optional_argument(node, 2))


def _moments(graph: fx.Graph) -> dict[fx.Node, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of the channels of values, (C,) each, as far as BatchNorm tells them."""
    found: dict[fx.Node, tuple[torch.Tensor, torch.Tensor]] = {}
    for node in graph.nodes:
        name, inputs = operator(node), computed_inputs(node)
        if (noted := moments_of(node)) is not None:
            found[node] = (noted.mean, noted.deviation**2)
        elif not inputs or not all(i in found for i in inputs) or is_contraction(node):
            continue
        elif name in RECTIFIERS:
            found[node] = clipped_normal(*found[inputs[0]], *rectifier_bounds(node))
        elif (
            name in ("add", "add_")
            and len(inputs) == 2
            and value_of(inputs[0]).shape == value_of(inputs[1]).shape
        ):
            (a, v), (b, w) = (found[i] for i in inputs)
            found[node] = (a + b, v + w)
        elif (
            unpadded(node)
            or (name in AVERAGES and over_space(node))
            or name in ("dropout", "dropout_", "clone", "contiguous", "detach", "alias")
        ):
            found[node] = found[inputs[0]]
        elif name in ("flatten", "view", "reshape", "squeeze") and value_of(node).ndim == 2:
            mean, variance = found[inputs[0]]
            repeat = value_of(node).shape[1] // len(mean)
            found[node] = (mean.repeat_interleave(repeat), variance.repeat_interleave(repeat))
    return found


def clipped_normal(
    mean: torch.Tensor, variance: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of clip(x, low, high) for a normal x; either end may be infinite. Nagel et
    al. 2019, appendix C.
    """
    mean, deviation = mean.double(), variance.double().sqrt().clamp_min(1e-12)
    a, b = (low - mean) / deviation, (high - mean) / deviation

    def density(z: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    def times(value: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
        return torch.where(factor == 0, 0.0, value * factor)  # infinity times nothing

    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    inside, slope = 1 - below - above, density(a) - density(b)
    first = mean * inside + deviation * slope + times(low, below) + times(high, above)
    second = (
        (mean**2 + deviation**2) * inside
        + 2 * mean * deviation * slope
        + times(low**2, below)
        + times(high**2, above)
    )
    second = second + deviation**2 * (times(a, density(a)) - times(b, density(b)))
    return first, (second - first**2).clamp_min(0)


Repair = Callable[[fx.GraphModule, fx.GraphModule, Sequence[Batch]], None]
# In the order in which they are applied. (network, its float form with nodes of the same names,
# batches); changes the network.
REPAIRS: dict[str, Repair] = {
    "equalize-activations": equalize_activations,
    "equalize": equalize,
    "smooth-quant": smooth_quant,
    "learned-rounding": learn_rounding,
    "bias-analytic": correct_bias_analytically,
    "bias": correct_bias,
}
# These change the float network, before thresholds are chosen.
BEFORE = ("equalize-activations", "equalize", "smooth-quant")
AUTO = "auto"  # instead of names: those that turn out best


def check_repairs(repair: str | Iterable[str] | None) -> list[str]:
    """The names in the order in which they are applied, whatever order they were given in; `[AUTO]`
    for that.
    """
    names = [] if repair is None else [repair] if isinstance(repair, str) else list(repair)
    if names == [AUTO]:
        return names
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"repair names {name!r}; expected names of {', '.join(REPAIRS)}")
        if name == AUTO:
            raise InputError(
                f"repair={names!r}: {AUTO!r} chooses among all repairs and stands alone"
            )
        choose(name, REPAIRS, "repair")
    return [n for n in REPAIRS if n in names]
