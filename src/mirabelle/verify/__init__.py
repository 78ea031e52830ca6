"""`mb.verify`: float, simulation, integer reference and runtime, compared layer by layer."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is depends on the operator.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportOptionalIterable=false, reportAssignmentType=false

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from mirabelle.data import Batch, samples
from mirabelle.errors import InputError
from mirabelle.measure.accuracy import Score, as_tensor, predictor, score
from mirabelle.progress import bar
from mirabelle.quantize import quantization
from mirabelle.quantize.fake import ActivationQuantizer
from mirabelle.quantize.place import Site
from mirabelle.runtimes.artifact import Artifact
from mirabelle.verify.expose import exposed, is_edited
from mirabelle.verify.reference import Reference

AGAIN = "The layers' values are those of a second file, made from the network; its outputs equal the artifact's in every bit."
OTHER = "A second file, made from the network to see its layers, gives other outputs than the artifact: only the outputs are compared."


@dataclass(frozen=True)
class LayerCheck:
    """One quantised layer on the runtime against the integer reference.

    max_off_by: the largest difference in integer steps. exact: the share of equal integers. sqnr_db: the reference's signal to the
    difference, in decibels (None where they are equal). note: what explains a difference.
    """

    layer: str
    max_off_by: int
    exact: float
    sqnr_db: float | None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found. agreement: the share of samples to which runtime and reference give the same class.

    note: where the layers' values come from, if not from the file itself.
    """

    runtime: str
    samples: int
    layers: list[LayerCheck]
    agreement: Score
    sqnr_db: float | None
    simulation_sqnr_db: float | None
    float_operators: list[str]
    note: str = ""

    @property
    def first_departure(self) -> LayerCheck | None:
        """The first layer off by more than one step: earlier ones differ by rounding alone."""
        return next((c for c in self.layers if c.max_off_by > 1), None)

    def to_dict(self) -> dict[str, Any]:
        first = self.first_departure
        return {**asdict(self), "first_departure": None if first is None else {"layer": first.layer, "why": first.note}}

    def __str__(self) -> str:
        table = Table(
            "layer",
            "off by",
            "exact",
            "SQNR, dB",
            "note",
            title=f"{self.runtime} against the integer reference, n = {self.samples}",
            title_justify="left",
        )
        for c in self.layers:
            table.add_row(c.layer, str(c.max_off_by), f"{100 * c.exact:.3f} %", "∞" if c.sqnr_db is None else f"{c.sqnr_db:.1f}", c.note)
        out = StringIO()
        console = Console(file=out, width=130)
        console.print(table)
        if self.note:
            console.print(self.note, markup=False)
        console.print(f"same class: {self.agreement}; output SQNR {'∞' if self.sqnr_db is None else f'{self.sqnr_db:.1f} dB'}", markup=False)
        return out.getvalue()


def sqnr(reference: np.ndarray, other: np.ndarray) -> float | None:
    """10 log10 of signal power over noise power; None where the two are equal or the reference is zero."""
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return None if noise == 0 or signal == 0 else 10 * float(np.log10(signal / noise))


def verify(model: fx.GraphModule, artifact: Artifact, data: Iterable, *, samples: int = 256) -> Verification:
    """Compares `artifact` with the quantised network that it was exported from, on the first `samples` inputs of `data`.

    The runtime executes a copy of the artifact with the integers of every layer as outputs; each is compared with the integer reference.
    Where the runtime's files cannot be edited, these come from a second file made from `model`, and are left out if that one gives other
    outputs than the artifact. The final outputs are compared on the artifact itself. Raises `InputError` where `model` is not quantised or does not fit the artifact.
    """
    described = quantization(model)
    if described is None:
        raise InputError("verify needs the quantised network (mb.quantize); a float artifact can be compared by mb.measure")
    reference = Reference(model)
    ends = _outputs(model)
    layers = {s.node: s for s in described.sites}
    tallies: dict[str, list[float]] = {}
    outputs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    changed = False
    with tempfile.TemporaryDirectory() as folder, bar(f"verifying on {artifact.runtime}", samples) as shown:
        copy, inside = exposed(model, artifact, [n for n in layers if n not in ends], Path(folder))
        merged = [s.layer for n, s in layers.items() if n not in ends and n not in inside]
        layers = {n: s for n, s in layers.items() if n in ends or n in inside}
        for batch in _pieces(data, samples):
            expected, result = reference.run(batch)
            values = copy.predict(batch)
            values = values if isinstance(values, tuple) else (values,)
            inner = iter(values[len(artifact.outputs) :])
            integers = [values[ends[n]] if n in ends else next(inner) for n in layers]
            integers = [_reshaped(i, expected[n]) for n, i in zip(layers, integers, strict=True)]
            actual = as_tensor(artifact.predict(batch)).numpy()
            changed = changed or (not is_edited(artifact) and not np.array_equal(actual, as_tensor(values[0]).numpy()))
            for what, got, want in [("output", actual, result), *((layers[n].layer, i, expected[n]) for n, i in zip(layers, integers, strict=True))]:
                if got.shape != want.shape:
                    raise InputError(f"{what} has shape {got.shape} in {artifact}, {want.shape} in the network; it was exported from another network")
            for name, seen in zip(layers, integers, strict=True):
                scale, zero_point, low = _grid(model, layers[name])
                if seen.dtype.kind in "iu":  # a file may hold a uint8 grid as int8, all of it lower by 128
                    steps = seen.astype(np.int64) + 128 * int(seen.dtype == np.int8 and low == 0)
                else:
                    steps = np.rint(seen / scale).astype(np.int64) + zero_point
                _tally(tallies.setdefault(name, [0, 0, 0, 0.0, 0.0]), expected[name], steps, zero_point)
            simulated = predictor(model)(batch).cpu().numpy()
            outputs.append((result, actual, simulated))
            shown.advance(batch.size)
    result, actual, simulated = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    checks = [LayerCheck(layers[n].layer, int(t[0]), t[2] / t[1], _db(t[3], t[4]), _note(t)) for n, t in tallies.items()]
    note = "" if is_edited(artifact) else OTHER if changed else AGAIN
    note += f"Not in the file, as its converter merged them with others: {', '.join(merged)}." if merged else ""
    checks = [c for c, n in zip(checks, tallies, strict=True) if OTHER not in note or n in ends]
    same = (result.reshape(len(result), -1).argmax(1) == actual.reshape(len(actual), -1).argmax(1)).astype(np.float64)
    return Verification(
        artifact.runtime, len(result), checks, score(same, "agreement"), sqnr(result, actual), sqnr(result, simulated), sorted(set(reference.floats)),
        note,
    )  # fmt: skip


def _pieces(data: Iterable, count: int) -> Iterable[Batch]:
    for batch in samples(data, count):
        for start in range(0, batch.size, 32):
            yield batch.map(lambda t, s=start: t[s : s + 32])._replace(target=None)


def _reshaped(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Runtimes add and drop dimensions of size 1."""
    same = [s for s in values.shape if s != 1] == [s for s in like.shape if s != 1]
    return values.reshape(like.shape) if same else values


def _outputs(model: fx.GraphModule) -> dict[str, int]:
    """The sites that are outputs of the network: files give these as floats only. The index of the output."""
    results = torch.utils._pytree.tree_leaves(model.graph.output_node().args)
    return {r.args[0].name: i for i, r in enumerate(results) if isinstance(r, fx.Node) and r.op == "call_module"}


def _grid(model: fx.GraphModule, site: Site) -> tuple[np.float32, int, int]:
    """Scale, zero point and smallest integer of a site."""
    quantizer = model.get_submodule(f"quantizers.{site.source or site.node}")
    assert isinstance(quantizer, ActivationQuantizer)
    return np.float32(quantizer.scale.detach().abs()), quantizer.zero_point, quantizer.low


def _tally(tally: list, expected: np.ndarray, seen: np.ndarray, zero_point: int) -> None:
    off = np.abs(expected - seen)
    tally[0] = max(tally[0], int(off.max()))
    tally[1] += off.size
    tally[2] += int((off == 0).sum())
    tally[3] += float(np.square((expected - zero_point).astype(np.float64)).sum())
    tally[4] += float(np.square(off.astype(np.float64)).sum())


def _db(signal: float, noise: float) -> float | None:
    return None if noise == 0 or signal == 0 else 10 * float(np.log10(signal / noise))


def _note(tally: list) -> str:
    """Rounding is off by one and rare; anything else has another cause."""
    if tally[0] == 0:
        return ""
    if tally[0] == 1:
        return "rounding"
    share = 1 - tally[2] / tally[1]
    return "saturation or another kernel's arithmetic" if share > 0.05 else "differences of earlier layers, or saturation"


__all__ = ["LayerCheck", "Verification", "sqnr", "verify"]
