"""Quantization: `mb.quantize`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from torch import fx, nn
from typing_extensions import Doc

from mirabelle.base.checks import check_float32, check_network
from mirabelle.base.data import Batch, example_inputs
from mirabelle.base.data import samples as first_samples
from mirabelle.base.declarations import KeepOption
from mirabelle.base.errors import InputError
from mirabelle.base.keep import names_of
from mirabelle.base.names import resolve
from mirabelle.base.options import Check, Expected, FromRun, OneOf, declared
from mirabelle.base.progress import say
from mirabelle.measurement.accuracy import MetricOption
from mirabelle.measurement.judge import Judge
from mirabelle.onnx_files.source import source_of
from mirabelle.onnx_files.write_back import check_opset
from mirabelle.quantization.calibration.thresholds import RANGES, THRESHOLDS, rules_for
from mirabelle.quantization.prepared import Grids, Prepared, prepared, repaired
from mirabelle.quantization.repairs.table import AUTO, REPAIRS, SEARCH, check_repairs, suitable
from mirabelle.quantization.search.fallback import within
from mirabelle.quantization.search.repairs import best_repairs
from mirabelle.quantization.search.timing import fastest
from mirabelle.quantization.simulation.calibrated import Calibrated, adopt_weights
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.targets import TARGETS, resolve_target
from mirabelle.runtimes import RUNTIMES, check_runs_here
from mirabelle.runtimes.declarations import RuntimeOption
from mirabelle.sources.networks import Found, find, module, with_example
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.sources.synthetic import pictures_for

RepairName = Annotated[str, OneOf(lambda: (AUTO, SEARCH, *REPAIRS))]
PLACEMENTS = {"all": None, "fastest": None}


def _together(options: Mapping[str, Any]) -> None:
    """What `quantize` asks of several options at once."""
    bits, weight_bits = options["bits"], options["weight_bits"]
    if options["symmetric"] is False:
        resolve(options["threshold"], {AUTO: None, **RANGES}, "threshold")
    if not options["weight_symmetric"]:
        resolve(options["weight_threshold"], RANGES, "weight threshold")
    if options["symmetric"] is False and not (goal := resolve_target(options["target"])).unsigned:
        raise InputError(
            f"target {goal.name!r} is for kernels without zero points, which symmetric=False "
            f"needs; choose another of {', '.join(TARGETS)}"
        )
    if not RUNTIMES[options["runtime"]].int8:
        raise InputError(
            f"runtime {options['runtime']!r} does not run quantized networks; choose one of "
            f"{', '.join(n for n, r in RUNTIMES.items() if r.int8)}"
        )
    if options["placement"] == "fastest" and (bits != 8 or (weight_bits or 8) > 8):
        raise InputError(
            f"placement='fastest' times files for runtimes, which take 8 bits; got bits={bits}, "
            f"weight_bits={weight_bits}"
        )
    _check_limit(options["accuracy_drop"], options["validation"])


@declared(_together)
def quantize(
    model: nn.Module | str | Path | Found,
    data: Iterable | None = None,
    *,
    inputs: Annotated[Any, FromRun, Doc("example inputs, for where there are no data")] = None,
    threshold: Annotated[
        str | Callable,
        OneOf(lambda: (AUTO, *THRESHOLDS), plugin=True),
        Doc("where activations are clipped; auto asks the network's outputs for each tensor"),
    ] = AUTO,
    weight_threshold: Annotated[
        str | Callable, OneOf(THRESHOLDS, plugin=True), Doc("where weights are clipped")
    ] = "absmax",
    bits: Annotated[
        int, Ge(2), Le(16), Doc("of weights and activations; files for runtimes need 8")
    ] = 8,
    weight_bits: Annotated[
        int | None, Ge(2), Le(16), Doc("of the weights alone; None is as many as the target takes")
    ] = None,
    symmetric: Annotated[
        bool | None,
        Doc("grids of activations around zero; else with zero points; None is what costs no time"),
    ] = None,
    per_channel: Annotated[
        bool, Doc("a scale for each output channel of a weight, else one for all")
    ] = True,
    weight_symmetric: Annotated[bool, Doc("grids of weights around zero")] = True,
    samples: Annotated[int, Ge(1), Doc("how many calibration samples are used")] = 512,
    target: Annotated[
        str, OneOf(lambda: ("auto", *TARGETS)), Doc("grids and placement; auto is this machine's")
    ] = "auto",
    repair: Annotated[
        RepairName | Iterable[RepairName] | None,
        Check(check_repairs),
        Doc("what is made up for without labels: auto is what suits, search tries what is best"),
    ] = AUTO,
    keep: Annotated[
        KeepOption, Doc("modules or parameters, by path, whose layers stay in float")
    ] = (),
    accuracy_drop: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Expected("a fraction of at least 0 and below 1, such as 0.005 for half a point"),
        Doc("layers fall back until metric has fallen by at most so much"),
    ] = None,
    validation: Annotated[
        Iterable | None, Doc("the data that accuracy_drop is measured on")
    ] = None,
    metric: Annotated[MetricOption, FromRun, Doc("the score of accuracy_drop")] = "top1",
    fallback: Annotated[
        Literal["float", 16], Doc("what layers fall back to: float, or 16 for bits")
    ] = "float",
    placement: Annotated[
        str, OneOf(PLACEMENTS), Doc("all layers, or only those that measure faster as integers")
    ] = "all",
    runtime: Annotated[
        RuntimeOption, Doc("where milliseconds are measured, for placement and fallback")
    ] = "onnxruntime",
) -> fx.GraphModule:
    """A network that computes with integers of `bits` bits, simulated in float.

    Weights have a scale for each output channel, activations one for each tensor. BatchNorm is
    folded. The result is an `nn.Module` on the same parameter paths. It can be trained (`mb.fit`),
    exported and saved.

    - model: a network in float32, or a name of one (`sources.networks`). Of an ONNX file `export`
      writes that file with integers in it.
    - data: the calibration set, with or without targets, read in one pass. Its memory does not
      grow with `samples`. Without it, networks of one picture are calibrated on synthetic ones
      (`sources.synthetic`), with the means and deviations that BatchNorm had from real ones.
    - inputs: an example of what the network takes, where there are no data and it does not say. A
      real picture also says where pictures end, where the network's preprocessing is not known.
    - threshold, weight_threshold: a name of `THRESHOLDS`, `"package.module:function"` or a
      callable (histogram, levels) -> threshold. `auto` measures at the network's outputs, for each
      tensor.
    - bits, weight_bits: 2 to 16, 8 by default.
    - symmetric: True puts grids around zero; tensors that are never negative use all of the grid
      for the positive side where the target can. False lets the zero point lie where the tensor's
      two ends put it; a callable then gives (low, high), as in `RANGES`. None is False where there
      are data and the target's kernels lose no time by it, unless `threshold` is your own rule.
    - per_channel, weight_symmetric: of the weights' grids; both are True by default.
    - samples: how many are used, 512 by default.
    - target: a name of `TARGETS`, or `auto`, this machine's (see `targets.py`).
    - repair: names of `REPAIRS`, applied in the order of that dict, on at most so many samples as
      hold 32 million numbers. `auto` is those that suit the network and cost little. `search`
      tries all but those that train, and takes the combination whose outputs are nearest to float
      on samples that it was not calibrated on. It holds all samples in memory.
    - keep: modules or parameters, by path, whose layers stay in float.
    - accuracy_drop: the most sensitive layers fall back first, and no more than it takes, until
      `metric` on `validation` has fallen by at most so much, as a fraction. What that took is in
      `quantization(q).fallback`.
    - validation: needed by accuracy_drop. Without labels the metric is agreement with float.
    - metric: as for `measure`, `top1` by default.
    - fallback: what layers fall back to: `float`, or 16 for bits.
    - placement: `fastest` leaves in float what measures slower as integers on `runtime`, on this
      machine. It writes and times half a dozen files; see `quantization(q).timing`.
    - runtime: where milliseconds are measured, for placement and fallback.

    Scales follow ONNX: x ≈ (q - zero_point) * scale; the seminar's S is 1 / scale.
    Raises `InputError` for an empty or unsound calibration set, and where the network has nothing
    to quantize.
    Source: Jacob et al. 2018, sections 2 and 3; repairs name their own.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(256, 4)
        >>> q = mb.quantize(model, [x])
        >>> bool((q(x) - model(x)).abs().max() < 0.05)
        True
    """
    if quantization(model) is not None:
        raise InputError(
            "this network is quantized already; quantize the float network it came from"
        )
    goal = resolve_target(target)
    if symmetric is None:  # ends of synthetic data are too near on the shorter side
        free = goal.zero_points and data is not None
        symmetric = not free or threshold not in (AUTO, *RANGES)
    choose = None if threshold == AUTO else resolve(threshold, rules_for(symmetric), "threshold")
    keep = tuple(names_of(keep))
    repairs = check_repairs(repair)
    if placement == "fastest":
        check_runs_here(runtime)
    pictures: list[Batch] = []
    if data is None:
        model = find(model)
        data = pictures = synthetic(*with_example(model, inputs), model.how)
    stream = first_samples(data, samples, "the calibration set")
    first = next(stream)
    model = check_network(module(model, first, fold=True))
    if (source := source_of(model)) is not None:
        check_opset(source, 13, "scales per channel")
    check_float32(model)
    judge = (
        None if accuracy_drop is None or validation is None else Judge(model, validation, metric)
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
    ready = ready.corrected(pictures) if pictures else ready
    repairs, stream = _chosen(repairs, ready, first, stream, samples)
    calibrated, few = ready.calibrated(chain([first], stream), samples, repairs)
    if placement == "fastest":
        timing = fastest(model, calibrated, first, runtime)
        described = replace(calibrated.described, keep=(*keep, *timing.layers), timing=timing)
        calibrated = replace(calibrated, described=described)
    result = repaired(calibrated.quantized(), calibrated.network, few, repairs)
    if judge is None:
        return result
    return within(
        model,
        result,
        calibrated.network,
        lambda weights: _fallen_back(weights, calibrated, result, few, repairs, fallback),
        judge,
        accuracy_drop or 0.0,
        fallback,
        few,
        runtime,
    )


def synthetic(network: nn.Module, x: Any, how: Preprocessing | None) -> list[Batch]:
    """Pictures to calibrate on. `InputError` for networks that take anything else."""
    example = example_inputs(x)
    pictures, scale = pictures_for(check_network(network), example, bounded=True, how=how)
    if not pictures:
        raise InputError(
            "quantize needs data=, batches of what the network is used on; only for networks that "
            "take one picture, in batches of any size, can they be made up"
        )
    say(
        f"without data activations are measured on {sum(b.size for b in pictures)} synthetic "
        f"pictures ({scale}); some hundred real inputs as data=, without labels, are worth decibels"
    )
    return pictures


def _chosen(
    repairs: list[str], ready: Prepared, first: Batch, stream: Iterator[Batch], samples: int
) -> tuple[list[str], Iterator[Batch]]:
    """The repairs by name, and what is left to read of the data after the first batch."""
    if repairs == [AUTO]:
        return suitable(ready.network), stream
    if repairs != [SEARCH]:
        return repairs, stream
    # One pass of a loader: another may shuffle, and calibrate on what it is judged by.
    held = [first, *stream]
    found = best_repairs(
        ready.network, lambda names, some: ready.quantized(some, samples, names), held
    )
    return found, iter(held[1:])


def _fallen_back(
    weights: Sequence[str],
    calibrated: Calibrated,
    result: fx.GraphModule,
    few: list[Batch],
    repairs: Sequence[str],
    precision: str | int,
) -> fx.GraphModule:
    """The quantized network with the layers of these weights in another precision.

    What layers learned stays good. Biases make up for the layers before, and are corrected again.
    """
    other = calibrated.fallen_back(weights, precision)
    if "learned-rounding" in repairs:
        adopt_weights(other, result, weights)
    return repaired(other, calibrated.network, few, [n for n in repairs if n != "learned-rounding"])


def _check_limit(limit: float | None, validation: Iterable | None) -> None:
    if limit is None:
        return
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
