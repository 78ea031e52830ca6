"""What a quantized network's report shows: every tensor's distribution, its threshold, and what
rounding costs it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from mirabelle.graph.capture import get_tensor, parameter_name
from mirabelle.graph.nodes import argument, called, module
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.notes import histograms_of
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer


def describe_tensors(model: fx.GraphModule) -> list[dict[str, Any]]:
    """One dict for each quantized activation (where the calibration's histograms are at hand) and
    each weight.

    threshold, maximum, scale: in the tensor's units; for weights, lists over output channels of
    threshold and scale. sqnr_db: the tensor's signal over the error of quantizing it, from the
    histogram for activations, exact for weights (None where these are values of the grid already,
    as after learned rounding).
    histogram: counts over equal bins of [low, high]. For activations also rule, what chose the
    threshold, and chosen, whether that was left open and the rule found for this tensor; range, the
    two ends of the grid, and unclipped: range, scale and sqnr_db of the grid that clips nothing,
    with as many steps.
    """
    described = quantization(model)
    assert described is not None
    found = []
    histograms = histograms_of(model)
    for site in described.sites:
        if site.source is None and site.node in histograms:
            quantizer = module(model, f"quantizers.{site.node}", ActivationQuantizer)
            rule = described.rules.get(site.node)
            seen = _activation(site.layer, quantizer, histograms[site.node])
            found.append({**seen, "rule": rule or described.threshold, "chosen": rule is not None})
    for node in model.graph.nodes:
        if (quantizer := called(model, node, WeightQuantizer)) is not None:
            name = str(parameter_name(argument(node, 0)))
            found.append(
                _weight(
                    name.rpartition(".")[0] or name, quantizer, get_tensor(model, name).detach()
                )
            )
    return found


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _rounding(histogram: Histogram, scale: float, zero: int, low: int, high: int) -> float | None:
    """What a grid leaves of the signal, in dB, from the histogram."""
    bins = len(histogram.counts)
    centers = (np.arange(bins) - bins // 2 + 0.5) * (2 * histogram.reach / bins)
    rounded = (np.clip(np.rint(centers / scale) + zero, low, high) - zero) * scale
    return _decibels(
        float((histogram.counts * centers**2).sum()),
        float((histogram.counts * (centers - rounded) ** 2).sum()),
    )


def _activation(layer: str, quantizer: ActivationQuantizer, histogram: Histogram) -> dict[str, Any]:
    scale, low, high, zero = (
        float(quantizer.scale.detach()),
        quantizer.low,
        quantizer.high,
        quantizer.zero_point,
    )
    # The grid that clips nothing, with as many steps and zero where it is.
    whole = max(-histogram.low / max(zero - low, 1), histogram.high / max(high - zero, 1)) or 1.0
    return {
        "name": layer,
        "kind": "activation",
        "threshold": scale * (high - zero),
        "maximum": histogram.maximum,
        "scale": scale,
        "zero_point": zero,
        "bits": quantizer.bits,
        "levels": [low, high] if zero != low else [0, high - low],
        "range": [(low - zero) * scale, (high - zero) * scale],
        "sqnr_db": _rounding(histogram, scale, zero, low, high),
        "histogram": histogram.summary(),
        "unclipped": {
            "range": [(low - zero) * whole, (high - zero) * whole],
            "scale": whole,
            "sqnr_db": _rounding(histogram, whole, zero, low, high),
        },
    }


def _weight(layer: str, quantizer: WeightQuantizer, weight: torch.Tensor) -> dict[str, Any]:
    with torch.no_grad():
        error = quantizer(weight) - weight
    histogram = Histogram()
    histogram.add(weight, layer)
    scales = quantizer.scale.detach()
    return {
        "name": layer,
        "kind": "weight",
        "threshold": [float(s) * quantizer.levels for s in scales],
        "maximum": histogram.maximum,
        "scale": [float(s) for s in scales],
        "zero_point": quantizer.offset.tolist(),
        "bits": quantizer.bits,
        "levels": [quantizer.low, quantizer.high],
        "sqnr_db": _decibels(
            float(weight.double().square().sum()), float(error.double().square().sum())
        ),
        "histogram": histogram.summary(),
    }
