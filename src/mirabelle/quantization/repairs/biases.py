"""Repairs of biases: what rounding adds to a layer's output on average is taken from its bias."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.graph.capture import get_tensor, operator, parameter_name, parameter_uses
from mirabelle.graph.nodes import argument, computed_inputs, optional_argument, value_of
from mirabelle.quantization.forms.qdq import is_contraction_of_quantized, quantized_weight
from mirabelle.quantization.repairs.side_by_side import side_by_side
from mirabelle.quantization.simulation.notes import histograms_of, moments_of
from mirabelle.quantization.simulation.operators import (
    AVERAGES,
    RECTIFIERS,
    is_contraction,
    over_space,
    rectifier_bounds,
    unpadded,
)


def correct_bias(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Empirical bias correction: to each layer's bias the mean, over the batches, of what the float
    network's layer gives above the quantized one's.

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
    _expected_out(
        network, reference, {n.name: m for n, (m, _) in _moments(reference.graph).items()}
    )


def correct_bias_by_means(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Analytic bias correction with the means of what layers read as calibration saw them, so for
    layers without a BatchNorm before them too.

    From each bias goes the product of the weights' rounding error and these means: what a layer's
    output is off by on average. Nagel et al. 2019, section 4.2, eq. 13; costs no pass.
    """
    seen = {n: h.means for n, h in histograms_of(network).items()}
    _expected_out(
        network, reference, {n: torch.from_numpy(m) for n, m in seen.items() if m is not None}
    )


def _expected_out(
    network: fx.GraphModule, reference: fx.GraphModule, means: Mapping[str, torch.Tensor]
) -> None:
    """Takes from each bias what rounding its layer's weights adds on average. means: (C,) of the
    channels of what layers read, by the name of the node in the float network.
    """
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
