"""Quantisation: `mb.quantize`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from torch import fx, nn

from mirabelle.base.checks import check_network
from mirabelle.base.data import samples as first_samples
from mirabelle.base.errors import InputError
from mirabelle.base.errors import choose as choose_name
from mirabelle.base.names import resolve
from mirabelle.onnx_files.read import network as network_of
from mirabelle.quantization.calibration.thresholds import RANGES, THRESHOLDS
from mirabelle.quantization.prepared import Grids, prepared, repaired
from mirabelle.quantization.repairs.table import AUTO, REPAIRS, check_repairs
from mirabelle.quantization.search.fallback import Judge, within
from mirabelle.quantization.search.repairs import best_repairs
from mirabelle.quantization.search.timing import fastest
from mirabelle.quantization.simulation.calibrated import adopt_weights
from mirabelle.quantization.simulation.description import Quantization, quantization
from mirabelle.quantization.simulation.graph import rebuild
from mirabelle.quantization.targets import TARGETS, resolve_target
from mirabelle.runtimes import RUNTIMES, check_runs_here

PLACEMENTS = {"all": None, "fastest": None}


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
    repair: str | Iterable[str] | None = None,
    keep: Iterable[str] = (),
    accuracy_drop: float | None = None,
    validation: Iterable | None = None,
    metric: str | Callable = "top1",
    fallback: str | int = "float",
    placement: str = "all",
    runtime: str = "onnxruntime",
) -> fx.GraphModule:
    """A network that computes with integers of `bits` bits, simulated in float: weights per output
    channel, activations per tensor.

    model: a network, or the path of an ONNX file; then `export` writes that file with integers in
    it.
    data: the calibration set, inputs with or without targets; `samples` of them are used, in one
    pass whose memory does not grow with their number.
    threshold: a name of `THRESHOLDS`, `"package.module:function"` or a callable (histogram, levels)
    -> threshold, for activations; `weight_threshold` for weights.
    bits: of weights and activations, 2 to 16; files for runtimes need 8. weight_bits: of the
    weights alone.
    symmetric: grids of activations around zero (tensors that are never negative use all of it for
    the positive side where the target can), else affine ones: the zero point lies where the
    tensor's two ends put it, and a callable gives (low, high), as in `RANGES`. weight_symmetric:
    the same for weights.
    per_channel: a scale for each output channel of a weight, else one for all.
    target: a name of `TARGETS`; `auto` is this machine's (see `targets.py`). keep: modules or
    parameters whose layers stay in float.
    repair: names of `REPAIRS`, which mend without labels what quantisation breaks; applied in the
    order of that dict, on at most so many of the samples as hold 32 million numbers. "auto" tries
    them, those that train apart, and takes the combination whose outputs are nearest to the float
    network's on samples that it was not calibrated on; it holds all samples in memory meanwhile.
    accuracy_drop: where given, layers fall back to `fallback` (`float`, or 16 for bits), the most
    sensitive first and no more than it takes, until `metric` on `validation` has fallen by at most
    so much, as a fraction; without labels it is agreement with the float network's classes. What
    that took, and what it costs in milliseconds on `runtime`, is in `quantization(q).fallback`.
    placement: `all` quantises every layer that there are integer kernels for; `fastest` leaves in
    float those that measure slower on `runtime`, on this machine: what was found is in
    `quantization(q).timing`. It writes and times half a dozen files. BatchNorm is folded. The
    result is an `nn.Module` on the same parameter paths, can be trained (`mb.fit`), exported and
    saved.

    Scales follow ONNX: x ≈ (q - zero_point) * scale. The seminar's S is 1 / scale.
    Raises `InputError` for an empty or unsound calibration set, and where the network has nothing
    to quantise.
    """
    for name, value in (
        ("bits", bits),
        ("weight_bits", bits if weight_bits is None else weight_bits),
    ):
        if not 2 <= value <= 16:
            raise InputError(f"{name} must be between 2 and 16, got {value!r}")
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples!r}")
    if quantization(model) is not None:
        raise InputError(
            "this network is quantised already; quantise the float network it came from"
        )
    choose = resolve(threshold, THRESHOLDS if symmetric else RANGES, "threshold")
    resolve(weight_threshold, THRESHOLDS if weight_symmetric else RANGES, "weight threshold")
    goal = resolve_target(target)
    if not symmetric and not goal.unsigned:
        raise InputError(
            f"target {goal.name!r} is for kernels without zero points, which symmetric=False "
            f"needs; choose another of {', '.join(TARGETS)}"
        )
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    repairs = check_repairs(repair)
    _check_limit(accuracy_drop, validation, fallback)
    choose_name(placement, PLACEMENTS, "placement")
    if not choose_name(runtime, RUNTIMES, "runtime").int8:
        raise InputError(
            f"runtime {runtime!r} does not run quantised networks; choose one of "
            f"{', '.join(n for n, r in RUNTIMES.items() if r.int8)}"
        )
    if placement == "fastest" and (bits != 8 or (weight_bits or 8) > 8):
        raise InputError(
            f"placement='fastest' times files for runtimes, which take 8 bits; got bits={bits}, "
            f"weight_bits={weight_bits}"
        )
    if placement == "fastest":
        check_runs_here(runtime)
    stream = first_samples(data, samples, "the calibration set")
    first = next(stream)
    if isinstance(model, (str, Path)):
        model = network_of(model, first)
    judge = (
        None
        if accuracy_drop is None or validation is None
        else Judge(check_network(model), validation, metric)
    )
    if weight_bits is None:
        weight_bits = bits
    name = threshold if isinstance(threshold, str) else getattr(threshold, "__name__", "custom")
    grids = Grids(
        goal,
        bits,
        weight_bits,
        name,
        choose,
        weight_threshold,
        symmetric,
        per_channel,
        weight_symmetric,
        keep,
    )
    ready = prepared(model, first, grids)
    if repairs == [AUTO]:
        # One pass of a loader: another may shuffle, and calibrate on what it is judged by.
        held = [first, *stream]
        repairs = best_repairs(
            ready.network, lambda names, some: ready.quantized(some, samples, names), held
        )
        stream = iter(held[1:])
    batches = chain([first], stream)
    calibrated, few = ready.calibrated(batches, samples, repairs, judge is not None)
    if placement == "fastest":
        timing = fastest(model, calibrated, first, runtime)
        described = replace(calibrated.described, keep=(*keep, *timing.layers), timing=timing)
        calibrated = replace(calibrated, described=described)
    result = repaired(calibrated.quantized(), calibrated.network, few, repairs)
    if judge is None:
        return result

    def fallen_back(weights: Sequence[str]) -> fx.GraphModule:
        other = calibrated.fallen_back(weights, fallback)
        # What layers learned stays good; biases make up for the layers before, and are corrected
        # again.
        if "learned-rounding" in repairs:
            adopt_weights(other, result, weights)
        left = [n for n in repairs if n != "learned-rounding"]
        return repaired(other, calibrated.network, few, left)

    return within(
        model,
        result,
        calibrated.network,
        fallen_back,
        judge,
        accuracy_drop or 0.0,
        fallback,
        few,
        runtime,
    )


def _check_limit(limit: float | None, validation: Iterable | None, fallback: str | int) -> None:
    if limit is None:
        return
    if not 0 <= limit < 1:
        raise InputError(
            f"accuracy_drop is a fraction of at least 0 and below 1, got {limit!r}; 0.005 is "
            "half a point"
        )
    if validation is None:
        raise InputError(
            "accuracy_drop needs validation=, the data on which it is measured; without labels "
            "it is agreement with the float network"
        )
    if isinstance(validation, Iterator):
        raise InputError(
            "validation is an iterator, which can be read only once; give a list, a DataLoader "
            "or any iterable"
        )
    if fallback not in ("float", 16):
        raise InputError(f"fallback is {fallback!r}; expected 'float' or 16")


__all__ = [
    "PLACEMENTS",
    "REPAIRS",
    "TARGETS",
    "THRESHOLDS",
    "Quantization",
    "check_repairs",
    "quantization",
    "quantize",
    "rebuild",
]
