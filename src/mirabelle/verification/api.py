"""`mb.verify`: float, simulation, integer reference and runtime, compared layer by layer."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is
# depends on the operator. pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false pyright:
# reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false,
# reportOperatorIssue=false, reportGeneralTypeIssues=false pyright: reportOptionalIterable=false,
# reportAssignmentType=false

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge
from rich import box
from rich.table import Table
from torch import fx, nn
from typing_extensions import Doc

from mirabelle.base.data import Batch, samples
from mirabelle.base.errors import InputError
from mirabelle.base.options import declared
from mirabelle.base.progress import bar
from mirabelle.base.terminal import drawn, plain, width
from mirabelle.graph.capture import sample_elements
from mirabelle.measurement.accuracy import Score, as_tensor, predictor, score
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.placement import Site, layer_name
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer
from mirabelle.runtimes.artifact import Artifact
from mirabelle.runtimes.clipping import kernels_with_pairs
from mirabelle.verification.causes import Cause, diagnose, diagnose_shipped, layer_of, saturation
from mirabelle.verification.exposure import exposed, is_edited, run_in_float
from mirabelle.verification.integer_reference import Reference
from mirabelle.verification.simulation import elements, simulate

# What the sites of one piece of the data may hold together: float, simulated, expected and seen
# values are in memory at once.
VALUES = 24_000_000
AGAIN = (
    "The layers' values are those of a second file, made from the network; its outputs "
    "equal the artifact's in every bit."
)
OTHER = (
    "A second file, made from the network to see its layers, gives other outputs than the "
    "artifact: only the outputs are compared."
)


@dataclass
class Comparison:
    """Integers against integers, over all samples. off_by: the largest difference in steps. exact:
    the share of equal integers.

    sqnr_db: the first one's signal to the difference, in decibels; None where they are equal.
    """

    off_by: int = 0
    count: int = field(default=0, repr=False)
    equal: int = field(default=0, repr=False)
    signal: float = field(default=0.0, repr=False)
    noise: float = field(default=0.0, repr=False)

    def add(self, one: np.ndarray, other: np.ndarray, zero_point: float = 0) -> None:
        off = np.abs(one - other)
        self.off_by = max(self.off_by, int(off.max(initial=0)))
        self.count += off.size
        self.equal += int((off == 0).sum())
        self.signal += float(np.square(one - np.float64(zero_point)).sum())
        self.noise += float(np.square(off, dtype=np.float64).sum())

    @property
    def exact(self) -> float:
        return self.equal / self.count if self.count else 1.0

    @property
    def sqnr_db(self) -> float | None:
        return (
            None
            if self.noise == 0 or self.signal == 0
            else 10 * float(np.log10(self.signal / self.noise))
        )


@dataclass(frozen=True)
class LayerCheck:
    """One quantised layer in all of its four forms.

    max_off_by, exact, sqnr_db: the runtime against the integer reference: the largest difference in
    integer steps, the share of equal integers, signal to difference in decibels (None where they
    are equal). simulation_off_by, simulation_exact: the reference against the simulation.
    float_sqnr_db: the simulation against the same network without rounding. cause, note: what
    explains a difference of the runtime, and the evidence.
    """

    layer: str
    max_off_by: int
    exact: float
    sqnr_db: float | None
    note: str = ""
    cause: str = ""
    simulation_off_by: int = 0
    simulation_exact: float = 1.0
    float_sqnr_db: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    agreement: the share of samples to which runtime and reference give the same class; ties: how
    many of the others have two best logits within one step, which is the largest logit's share of
    127. sqnr_db: of the runtime's output against the reference's; simulation_sqnr_db: of the
    simulation's. float_sqnr_db and
    float_agreement: of the runtime against the network in float. float_operators: what the
    reference ran in float for want of an integer form.
    shipped: where the outputs of the file as it is differ from those of the copy that shows all
    layers, the first layer that does, and why.
    note: where the layers' values come from, if not from the file itself, and which layers are not
    in it.
    saturated: the layers, in order of execution, that lost something because this processor's
    kernels clip pairs of products at 16 bits, and the share of their sums that did. The reference
    clips them, too.
    """

    runtime: str
    samples: int
    layers: list[LayerCheck]
    agreement: Score
    ties: int
    sqnr_db: float | None
    simulation_sqnr_db: float | None
    float_sqnr_db: float | None
    float_agreement: Score
    simulation_agreement: Score
    float_operators: list[str]
    shipped: dict[str, str] | None = None
    note: str = ""
    saturated: dict[str, float] = field(default_factory=dict)

    @property
    def first_departure(self) -> LayerCheck | None:
        """The first layer off by more than one step, in order of execution: earlier ones differ by
        rounding alone.
        """
        return next((c for c in self.layers if c.max_off_by > 1), None)

    @property
    def first_difference(self) -> LayerCheck | None:
        """The first layer where any integer differs."""
        return next((c for c in self.layers if c.max_off_by > 0), None)

    def to_dict(self) -> dict[str, Any]:
        first = self.first_departure
        return {
            **asdict(self),
            "first_departure": None if first is None else {"layer": first.layer, "why": first.note},
        }

    def __str__(self) -> str:
        return drawn(self._table(), *self._lines(), most=160) + "\n"

    def _table(self) -> Table:
        """Layer by layer. On a narrow terminal the reasons stand below the layers."""
        title = f"{self.runtime} against the integer reference, n = {self.samples}"
        narrow = width(160) < 120
        table = Table(
            title=title,
            title_justify="left",
            box=None if narrow or plain() else box.HEAVY_HEAD,
            padding=(0, 1, 0, 0) if narrow else (0, 1),
        )
        table.add_column("layer", overflow="fold")
        for name in (
            "float to\nsim., dB" if narrow else "float to\nsimulation, dB",
            "sim.\noff by" if narrow else "simulation\noff by",
            "reference\nexact",
            "runtime\noff by",
            "exact",
            "SQNR, dB",
        ):
            table.add_column(name, no_wrap=True)
        if not narrow:
            table.add_column("why")
        for c in self.layers:
            table.add_row(
                c.layer,
                _decibels(c.float_sqnr_db),
                str(c.simulation_off_by),
                _share(c.simulation_exact),
                str(c.max_off_by),
                _share(c.exact),
                _decibels(c.sqnr_db),
                *([] if narrow else [c.note]),
            )
        return table

    def _lines(self) -> list[str]:
        """What is said below the table."""
        reasons = [f"{c.layer}: {c.note}" for c in self.layers if c.note]
        first = self.first_departure
        lines = [
            *(reasons if width(160) < 120 else []),
            f"same class as the reference: {self.agreement}, {self.ties} of the others tie "
            f"within one step; output SQNR {_decibels(self.sqnr_db)} dB",
            f"same class as in float: runtime {self.float_agreement}; simulation "
            f"{self.simulation_agreement}; "
            f"runtime's output SQNR against float {_decibels(self.float_sqnr_db)} dB",
            f"first departure: {first.layer}: {first.note}"
            if first
            else "no layer is off by more than one step",
        ]
        if found := self.saturated:
            lines.append(
                "saturation: this processor's kernels clip pairs of products at 16 bits in "
                f"{len(found)} layer{'s' * (len(found) > 1)}, first in {next(iter(found))}, "
                f"most in {max(found, key=found.__getitem__)} ({_share(max(found.values()))} of "
                "its sums); quantize with target='x86'"
            )
        if self.note:
            lines.append(self.note)
        if self.shipped:
            lines.append(
                "the file as it is, without the layers' values among its outputs, departs "
                f"first at {self.shipped['layer']}: {self.shipped['why']}"
            )
        return lines


def _decibels(value: float | None) -> str:
    return "∞" if value is None else f"{value:.1f}"


def _share(value: float) -> str:
    return f"{100 * value:.3f} %"


def sqnr(reference: np.ndarray, other: np.ndarray) -> float | None:
    """10 log10 of signal power over noise power; None where the two are equal or the reference is
    zero.
    """
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return None if noise == 0 or signal == 0 else 10 * float(np.log10(signal / noise))


@declared()
def verify(
    model: fx.GraphModule,
    artifact: Artifact,
    data: Iterable,
    *,
    samples: Annotated[int, Ge(1), Doc("how many test samples are compared")] = 256,
    original: Annotated[
        nn.Module | Artifact | None, Doc("the float network that outputs are compared with")
    ] = None,
) -> Verification:
    """Compares `artifact` with the quantised network that it was exported from, on the first
    `samples` inputs of `data`: float, simulation, integer reference and runtime, layer by layer.

    The runtime executes a copy of the artifact with the integers of every layer as outputs; each is
    compared with the integer reference. Where they differ, the layer is computed again from the
    runtime's own integers before it, so that only its own departure is left, and causes are tried
    in turn: a fusion that leaves out a rounding, float arithmetic. Where this processor's kernels
    clip pairs of products at 16 bits (x86 without VNNI) the reference clips them, too, and
    `Verification.saturated` counts what that changed: other departures are found behind it. The
    final outputs are compared on the artifact itself. Where the runtime's files cannot be edited,
    the layers' values come from a second file made from `model`, and are left out if that one gives
    other outputs than the artifact.
    original: by default `model` without its grids, which is the same until it is trained.
    Raises `InputError` where `model` is not quantised or does not fit the artifact.
    """
    described = quantization(model)
    if described is None:
        raise InputError(
            "verify needs the quantised network (mb.quantize); a float artifact can be compared "
            "by mb.measure"
        )
    pairs = kernels_with_pairs(artifact.runtime)
    reference, layers, ends = (
        Reference(model, pairs=pairs),
        {s.node: s for s in described.sites},
        _outputs(model),
    )
    clipped: Counter[str] = Counter()
    names = {n: s.layer for n, s in layers.items()}
    outputs: list[tuple[np.ndarray, ...]] = []
    causes: dict[str, Cause] = {}
    shipped: tuple[str, Cause] | None = None
    unsigned: Reference | None = None
    changed = False
    with (
        tempfile.TemporaryDirectory() as folder,
        bar(f"verifying on {artifact.runtime}", samples) as shown,
    ):
        copy, inside = exposed(model, artifact, [n for n in layers if n not in ends], Path(folder))
        merged = [s.layer for n, s in layers.items() if n not in ends and n not in inside]
        layers = {n: s for n, s in layers.items() if n in ends or n in inside}
        grids = {n: _grid(model, s) for n, s in layers.items()}
        runtime, simulated, floats = ({n: Comparison() for n in layers} for _ in range(3))
        examined = dict.fromkeys(
            layers,
            0,
            # the largest difference of each layer that was asked about: 0, 1, or 2 for anything
            # larger
        )
        float_layers: dict[str, str] | None = None
        for batch in _pieces(data, samples, max(1, min(32, VALUES // max(1, elements(model))))):
            expected, result = reference.run(batch)
            clipped.update(reference.clipped)
            values = copy.predict(batch)
            values = values if isinstance(values, tuple) else (values,)
            inner = iter(values[len(artifact.outputs) :])
            integers = {
                n: _reshaped(values[ends[n]] if n in ends else next(inner), expected[n])
                for n in layers
            }
            actual = as_tensor(artifact.predict(batch)).numpy()
            for what, got, want in [
                ("output", actual, result),
                *((layers[n].layer, i, expected[n]) for n, i in integers.items()),
            ]:
                if got.shape != want.shape:
                    raise InputError(
                        f"{what} has shape {got.shape} in {artifact}, {want.shape} in the "
                        "network; it was exported from another network"
                    )
            seen = {n: _steps(v, *grids[n]) for n, v in integers.items()}
            rounded, simulation = simulate(model, batch)
            whole, plain = simulate(model, batch, rounded=False)
            for name, grid in grids.items():
                runtime[name].add(expected[name], seen[name], grid.zero_point)
                simulated[name].add(_steps(rounded[name], *grid), expected[name], grid.zero_point)
                floats[name].add(whole[name], rounded[name])
            worst = {n: min(2, int(np.abs(expected[n] - seen[n]).max(initial=0))) for n in layers}
            if any(worst[n] > examined[n] for n in layers):
                examined = {n: max(examined[n], worst[n]) for n in layers}
                if float_layers is None:
                    float_layers = run_in_float(artifact, batch.head(1), layers)
                found = diagnose(model, pairs, batch, seen, float_layers, names)
                causes |= {
                    n: c
                    for n, c in found.items()
                    if n not in causes or causes[n].name == "rounding"
                }
            differs = not np.array_equal(as_tensor(values[0]).numpy(), actual)
            changed = changed or differs
            if not outputs and differs and pairs == "mlas":
                unsigned = _nearer(Reference(model, pairs="mlas-u8"), batch, result, actual)
            if unsigned is not None:  # the file's final outputs are those of these kernels
                result = unsigned.run(batch)[1]
                clipped.update(unsigned.clipped)
            elif not outputs and differs and is_edited(artifact):
                few = {n: v[:4] for n, v in seen.items()}
                alone = _alone(model, artifact, batch.head(4), few, ends, grids, Path(folder))
                shipped = diagnose_shipped(
                    model, pairs, batch.head(4), few, alone, float_layers or {}, names
                )
            outputs.append(
                (
                    result,
                    actual,
                    simulation,
                    plain if original is None else as_tensor(_predict(original, batch)).numpy(),
                )
            )
            shown.advance(batch.size)
    result, actual, simulation, plain = (
        np.concatenate(parts) for parts in zip(*outputs, strict=True)
    )
    note = "" if is_edited(artifact) else OTHER if changed else AGAIN
    compared = [n for n in layers if note != OTHER or n in ends]
    checks = [
        _check(
            layers[n].layer,
            runtime[n],
            simulated[n],
            floats[n],
            _cause(n, runtime, causes, names, clipped[layer_of(model, n).name]),
        )
        for n in compared
    ]
    note += " " * bool(note and merged) + (
        f"Not in the file, as its converter merged them with others: {', '.join(merged)}."
        if merged
        else ""
    )
    same = _classes(result) == _classes(actual)
    return Verification(
        artifact.runtime,
        len(result),
        checks,
        _agreement(result, actual),
        _ties(result[~same]),
        sqnr(result, actual),
        sqnr(result, simulation),
        sqnr(plain, actual),
        _agreement(plain, actual),
        _agreement(plain, simulation),
        sorted(set(reference.floats)),
        shipped
        and {"layer": layers[shipped[0]].layer, "cause": shipped[1].name, "why": str(shipped[1])},
        note,
        _shares(model, clipped, len(result)),
    )


def _alone(
    model: fx.GraphModule,
    artifact: Artifact,
    batch: Batch,
    seen: dict[str, np.ndarray],
    ends: dict[str, int],
    grids: dict[str, Grid],
    folder: Path,
) -> Callable[[str], np.ndarray]:
    """A site's integers in a copy of the file where no other site is an output."""

    def values(site: str) -> np.ndarray:
        copy, _ = exposed(model, artifact, [] if site in ends else [site], folder)
        found = copy.predict(batch)
        found = found if isinstance(found, tuple) else (found,)
        return _steps(
            _reshaped(found[ends[site] if site in ends else -1], seen[site]), *grids[site]
        )

    return values


def _predict(network: nn.Module | Artifact, batch: Batch) -> Any:
    return network.predict(batch) if isinstance(network, Artifact) else predictor(network)(batch)


def _pieces(data: Iterable, count: int, size: int) -> Iterable[Batch]:
    for batch in samples(data, count):
        yield from batch._replace(target=None).split(size)


def _outputs(model: fx.GraphModule) -> dict[str, int]:
    """The sites that are outputs of the network: files give these as floats only. The index of the
    output.
    """
    results = torch.utils._pytree.tree_leaves(model.graph.output_node().args)
    return {
        r.args[0].name: i
        for i, r in enumerate(results)
        if isinstance(r, fx.Node) and r.op == "call_module"
    }


class Grid(NamedTuple):
    """Scale, zero point and smallest integer of a site."""

    scale: np.float32
    zero_point: int
    low: int


def _grid(model: fx.GraphModule, site: Site) -> Grid:
    quantizer = model.get_submodule(f"quantizers.{site.source or site.node}")
    assert isinstance(quantizer, ActivationQuantizer)
    return Grid(np.float32(quantizer.scale.detach()), quantizer.zero_point, quantizer.low)


def _steps(values: np.ndarray, scale: np.float32, zero_point: int, low: int) -> np.ndarray:
    """Integers as they are, but for those of a grid of uint8 that a file holds as int8, all lower
    by 128; floats on the grid as integers.
    """
    if values.dtype.kind in "iu":
        return values.astype(np.int64) + 128 * int(values.dtype == np.int8 and low == 0)
    return np.rint(values / scale).astype(np.int64) + zero_point


def _reshaped(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Runtimes add and drop dimensions of size 1."""
    same = [s for s in values.shape if s != 1] == [s for s in like.shape if s != 1]
    return values.reshape(like.shape) if same else values


def _classes(logits: np.ndarray) -> np.ndarray:
    return logits.reshape(len(logits), -1).argmax(1)


def _agreement(one: np.ndarray, other: np.ndarray) -> Score:
    return score((_classes(one) == _classes(other)).astype(np.float64), "agreement")


def _ties(logits: np.ndarray) -> int:
    """How many samples have their two best logits within one step of a byte that holds them all."""
    if not logits.size or logits[0].size < 2:
        return 0
    flat = logits.reshape(len(logits), -1)
    best = np.sort(flat, 1)[:, -2:]
    return int((best[:, 1] - best[:, 0] <= np.abs(flat).max(1) / 127).sum())


def _cause(
    name: str,
    runtime: dict[str, Comparison],
    causes: dict[str, Cause],
    names: dict[str, str],
    clipped: int,
) -> Cause | None:
    if clipped and runtime[name].off_by <= 1:
        return saturation(clipped, runtime[name].count)
    if runtime[name].off_by == 0:
        return None
    if name in causes and (runtime[name].off_by <= 1 or causes[name].name != "rounding"):
        return causes[name]
    origin = next(iter(causes), None)
    handed = (
        f"differences that began at {names[origin]}"
        if origin and origin != name
        else "differences of layers before it"
    )
    own = f"; its own {causes[name]}" if name in causes else ""
    return Cause("earlier layers", handed + own)


def _nearer(
    unsigned: Reference, batch: Batch, result: np.ndarray, actual: np.ndarray
) -> Reference | None:
    """`unsigned` where it gives the file's outputs, and not `result`: ONNX Runtime turns signed
    bytes into unsigned ones where nothing else reads them, and then clips.
    """
    other = unsigned.run(batch)[1]
    near, far = (float(np.square(actual.astype(np.float64) - v).sum()) for v in (other, result))
    return unsigned if unsigned.clipped and near < far else None


def _shares(model: fx.GraphModule, clipped: Mapping[str, int], samples: int) -> dict[str, float]:
    """By layer, in order of execution, the share of its sums. clipped: how many, by node."""
    count = sample_elements(model.graph)
    return {
        layer_name(n): clipped[n.name] / (samples * count(n))
        for n in model.graph.nodes
        if n.name in clipped
    }


def _check(
    layer: str, runtime: Comparison, simulated: Comparison, floats: Comparison, cause: Cause | None
) -> LayerCheck:
    return LayerCheck(
        layer,
        runtime.off_by,
        runtime.exact,
        runtime.sqnr_db,
        str(cause or ""),
        cause.name if cause else "",
        simulated.off_by,
        simulated.exact,
        floats.sqnr_db,
    )


__all__ = ["LayerCheck", "Verification", "sqnr", "verify"]
