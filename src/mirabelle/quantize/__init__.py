"""Quantisation: `mb.quantize`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from torch import fx, nn

from mirabelle.data import Batch
from mirabelle.data import samples as first_samples
from mirabelle.errors import InputError
from mirabelle.graph.capture import get_tensor
from mirabelle.graph.rewrite import FORM
from mirabelle.onnxin import network as network_of
from mirabelle.plugins import resolve
from mirabelle.quantize.calibrate import activation_quantizer, fit_bias, observe, weight_quantizer
from mirabelle.quantize.description import Quantization, quantization
from mirabelle.quantize.network import captured, inputs_in_order, insert, rebuild, weight_keys
from mirabelle.quantize.place import check_keep, contractions, float_operators, layer_input, place
from mirabelle.quantize.saturate import channel_axes, limit_all
from mirabelle.quantize.targets import TARGETS, resolve_target
from mirabelle.quantize.thresholds import RANGES, THRESHOLDS


def quantize(
    model: nn.Module | str | Path,
    data: Iterable,
    *,
    threshold: str | Callable = "mse",
    weight_threshold: str | Callable = "absmax",
    bits: int = 8,
    weight_bits: int | None = None,
    symmetric: bool = True,
    per_channel: bool = True,
    weight_symmetric: bool = True,
    samples: int = 512,
    target: str = "auto",
    keep: Iterable[str] = (),
) -> fx.GraphModule:
    """A network that computes with integers of `bits` bits, simulated in float: weights per output channel, activations per tensor.

    model: a network, or the path of an ONNX file; then `export` writes that file with integers in it.
    data: the calibration set, inputs with or without targets; `samples` of them are used, in one pass whose memory does not grow with their number.
    threshold: a name of `THRESHOLDS`, `"package.module:function"` or a callable (histogram, levels) -> threshold, for activations; `weight_threshold` for weights.
    bits: of weights and activations, 2 to 16; files for runtimes need 8. weight_bits: of the weights alone.
    symmetric: grids of activations around zero (tensors that are never negative use all of it for the positive side where the target can), else affine ones:
    the zero point lies where the tensor's two ends put it, and a callable gives (low, high), as in `RANGES`. weight_symmetric: the same for weights.
    per_channel: a scale for each output channel of a weight, else one for all.
    target: a name of `TARGETS`; `auto` is this machine's (see `targets.py`). keep: modules or parameters whose layers stay in float.
    BatchNorm is folded. The result is an `nn.Module` on the same parameter paths, can be trained (`mb.fit`), exported and saved.

    Scales follow ONNX: x ≈ (q - zero_point) * scale. The seminar's S is 1 / scale.
    Raises `InputError` for an empty or unsound calibration set, and where the network has nothing to quantise.
    """
    for name, value in (("bits", bits), ("weight_bits", bits if weight_bits is None else weight_bits)):
        if not 2 <= value <= 16:
            raise InputError(f"{name} must be between 2 and 16, got {value!r}")
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples!r}")
    if quantization(model) is not None:
        raise InputError("this network is quantised already; quantise the float network it came from")
    choose = resolve(threshold, THRESHOLDS if symmetric else RANGES, "threshold")
    resolve(weight_threshold, THRESHOLDS if weight_symmetric else RANGES, "weight threshold")
    goal = resolve_target(target)
    if not symmetric and not goal.unsigned:
        raise InputError(
            f"target {goal.name!r} is for kernels without zero points, which symmetric=False needs; choose another of {', '.join(TARGETS)}"
        )
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    stream = _calibration(data, samples)
    first = next(stream)
    if isinstance(model, (str, Path)):
        model = network_of(model, first)
    network = captured(model, first)
    check_keep(network.graph, keep)
    sites, layers = place(network.graph, keep, goal), contractions(network.graph, keep)
    if not layers:
        inside = "; its If and Loop nodes may hold some, which stay as they are" if network.meta.get("onnx") else ""
        raise InputError(f"this network has no convolution or linear layer with a weight of its own; there is nothing to quantise{inside}")
    axes = channel_axes(layers) if goal.pairs and bits <= 8 else {}
    histograms, seen = observe(network, sites, chain([first], stream), samples, axes)
    # Targets of 8 bits say how many of these a weight may use; finer grids are no runtime's.
    weight_bits = min(bits if weight_bits is None else weight_bits, goal.weight_bits if bits <= 8 else 16)
    activations = {s.node: activation_quantizer(histograms[s.node], choose, bits, goal, symmetric) for s in sites if s.source is None}
    keys = weight_keys(network, keep)
    weights = {k: weight_quantizer(get_tensor(network, n), weight_threshold, weight_bits, n, per_channel, weight_symmetric) for n, k in keys.items()}
    grids = {s.node: activations[s.source or s.node] for s in sites}
    for node in layers:
        fit_bias(network, node, float(grids[layer_input(node).name].scale.detach()), weights[keys[str(node.args[1].target)]])  # type: ignore[union-attr]
    pair_sums = limit_all(network, layers, {n: weights[k] for n, k in keys.items()}, grids, histograms) if axes else {}
    named = [*(("", t) for t in first.args), *first.kwargs.items()]
    described = Quantization(
        goal.name, bits, weight_bits, threshold if isinstance(threshold, str) else getattr(threshold, "__name__", "custom"), seen,
        tuple((name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in named), tuple(sites),
        float_operators(network.graph, sites, keep), symmetric, per_channel, weight_symmetric, keep, pair_sums=pair_sums,
    )  # fmt: skip
    result = insert(network, activations, weights, described)
    result.meta["histograms"] = histograms
    result.meta[FORM] = getattr(model, "meta", {}).get(FORM)
    result.meta["float_sizes"] = {n: list(t.shape) for n, t in model.state_dict().items()}
    return result


def _calibration(data: Iterable, count: int) -> Iterator[Batch]:
    return first_samples(data, count, "the calibration set")


__all__ = ["TARGETS", "THRESHOLDS", "Quantization", "inputs_in_order", "quantization", "quantize", "rebuild"]
