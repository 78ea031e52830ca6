"""Calibration: what the tensors hold, and the quantizers that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch, device_of
from mirabelle.base.errors import InputError, first_line
from mirabelle.base.names import calling, resolve
from mirabelle.base.progress import bar
from mirabelle.graph.capture import get_tensor, inputs_in_order, operator, parameter_name
from mirabelle.graph.nodes import optional_argument
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.calibration.thresholds import ROWS, rules_for
from mirabelle.quantization.simulation.graph import activation_grid
from mirabelle.quantization.simulation.notes import correction_of
from mirabelle.quantization.simulation.operators import (
    RECTIFIERS,
    gives_no_negatives,
    reads_alone,
    weight_name,
)
from mirabelle.quantization.simulation.placement import Site
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from mirabelle.quantization.targets import Target


class PixelByPixel(fx.Interpreter):
    """Runs a network on images that lie pixel by pixel in memory: depthwise convolutions take half
    the time on CPUs. What nodes note of made-up inputs is applied (`calibration/made_up.py`).
    """

    def __init__(self, network: fx.GraphModule):
        super().__init__(network, garbage_collect_values=True)
        self.extra_traceback = False

    def placed(self, batch: Batch) -> Batch:
        """The batch on the network's device, images pixel by pixel."""
        module: Any = self.module
        return batch.to(device_of(module)).map(
            lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
        )

    def on(self, batch: Batch) -> Any:
        """The outputs for a batch, on the network's device. `InputError` where it does not run."""
        module: Any = self.module
        try:
            return self.run(*inputs_in_order(module.graph, self.placed(batch)))
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in batch.tensors)
            raise InputError(
                f"the network does not run on a calibration batch of shape {shapes}: "
                f"{first_line(error)}"
            ) from error

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        correction = correction_of(n)
        return value if correction is None else correction(value)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        # What was captured as a view of images that lay channel by channel may need a copy now.
        return super().call_function(
            torch.ops.aten.reshape.default if target is torch.ops.aten.view.default else target,
            args,
            kwargs,
        )


class _Observer(PixelByPixel):
    """Runs a network and adds what its sites hold to their histograms.

    layers: what people know the sites by. Rectifiers write over what is theirs alone: a tenth of
    the time is that of new memory for them.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        histograms: Mapping[str, Histogram],
        layers: Mapping[str, str],
    ):
        super().__init__(network)
        self.histograms, self.layers = histograms, layers
        self.over: dict[str, Any] = {
            n.name: getattr(torch.ops.aten, f"{operator(n)}_").default
            for n in network.graph.nodes
            if operator(n) in RECTIFIERS and not operator(n).endswith("_") and reads_alone(n)
        }

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.over:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = self.over[n.name](*args, **kwargs)
        else:
            value = super().run_node(n)
        if n.name in self.histograms:
            self.histograms[n.name].add(value, self.layers[n.name])
        return value


def histograms_for(
    network: fx.GraphModule, sites: Iterable[Site], axes: Mapping[str, int]
) -> dict[str, Histogram]:
    """An empty one for every site, by node. axes: the dimension of channels that are looked at."""
    rectified = {n.name for n in network.graph.nodes if gives_no_negatives(n)}
    return {s.node: Histogram(axis=axes.get(s.node), rectified=s.node in rectified) for s in sites}


def observe(
    network: fx.GraphModule,
    sites: Iterable[Site],
    data: Iterable[Batch],
    count: int,
    histograms: Mapping[str, Histogram],
) -> int:
    """Adds what sites hold to their histograms, and says how many samples there were; `count` of
    them are expected.
    """
    observer = _Observer(network, histograms, {s.node: s.layer for s in sites})
    seen = 0
    with torch.no_grad(), bar("calibrating", count) as shown:
        for batch in data:
            observer.on(batch)
            seen += batch.size
            shown.advance(batch.size)
    return seen


def activation_quantizer(
    histogram: Histogram, choose: Callable, bits: int, target: Target, symmetric: bool = True
) -> ActivationQuantizer:
    """choose: a rule of `THRESHOLDS`, or of `RANGES` where `symmetric` is false."""
    low, high = activation_grid(bits, target)
    if not symmetric:
        with calling("the threshold rule"):
            start, end = _checked_range(choose(histogram, 2**bits - 1))
        scale = (end - start) / (2**bits - 1)
        return ActivationQuantizer(
            scale or 1.0, low + (round(-start / scale) if scale else 0), low, high
        )
    rectified = target.unsigned and not histogram.signed
    levels = 2**bits - 1 if rectified else 2 ** (bits - 1) - 1
    with calling("the threshold rule"):
        threshold = float(choose(histogram, levels))
    if not 0 <= threshold < float("inf"):
        raise InputError(
            f"the threshold rule gave {threshold!r}; expected a number in (0, "
            f"{histogram.maximum:g}]"
        )
    return ActivationQuantizer(
        threshold / levels if threshold > 0 else 1.0,
        low if rectified else low + 2 ** (bits - 1),
        low,
        high,
    )


def _checked_range(found: Any) -> tuple[float, float]:
    try:
        start, end = (float(v) for v in found)
    except (TypeError, ValueError):
        raise InputError(
            f"the threshold rule gave {found!r}; for affine grids it gives (low, high)"
        ) from None
    if not (-float("inf") < start <= 0 <= end < float("inf")):
        raise InputError(f"the threshold rule gave ({start!r}, {end!r}); expected low <= 0 <= high")
    return start, end


def weight_quantizer(
    weight: torch.Tensor,
    rule: str | Callable,
    bits: int,
    name: str,
    per_channel: bool = True,
    symmetric: bool = True,
) -> WeightQuantizer:
    """rule: a name or a function, of `THRESHOLDS`, or of `RANGES` where `symmetric` is false."""
    rows, levels = (
        weight.detach().float().reshape(len(weight) if per_channel else 1, -1),
        2 ** (bits - 1) - 1,
    )
    if symmetric and isinstance(rule, str) and rule in ROWS:
        found = ROWS[rule](rows, levels)
    else:
        choose, histograms = (
            resolve(rule, rules_for(symmetric), "weight threshold"),
            [Histogram() for _ in rows],
        )
        for row, histogram in zip(rows, histograms):
            histogram.add(row, name)
        if not symmetric:
            with calling("the rule of weight thresholds"):
                ends = torch.tensor([_checked_range(choose(h, 2**bits - 1)) for h in histograms])
            # A filter of zeros has no scale of its own: a small one, which its bias is stored in
            # units of (see `fit_bias`).
            scale = ((ends[:, 1] - ends[:, 0]) / (2**bits - 1)).clamp_min(2.0**-40)
            return WeightQuantizer(
                scale, 0, levels, (-(levels + 1) - ends[:, 0] / scale).round().long()
            )
        with calling("the rule of weight thresholds"):
            found = torch.tensor([float(choose(h, levels)) for h in histograms])
    return WeightQuantizer(torch.where(found > 0, found / levels, 2.0**-40), 0, levels)


def fit_bias(
    network: fx.GraphModule, node: fx.Node, input_scale: float, quantizer: WeightQuantizer
) -> None:
    """Widens the scales of filters so small that their bias, in units of input scale times weight
    scale, would not fit 31 bits.

    Filters of zeros get a scale at which their bias takes 20 bits: fine steps, with room for
    training.
    """
    if (bias := parameter_name(optional_argument(node, 2))) is None:
        return
    weight = get_tensor(network, weight_name(node)).detach()
    units = torch.where(weight.flatten(1).any(1), 2.0**30, 2.0**20)
    smallest = get_tensor(network, bias).detach().abs() / (input_scale * units)
    scale = quantizer.scale.detach()
    quantizer.reset(
        torch.maximum(scale, (smallest if len(scale) > 1 else smallest.max()).to(scale))
    )
