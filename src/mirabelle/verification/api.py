"""`mb.verify`: float, simulation, integer reference and runtime, compared layer by layer."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from torch import fx, nn
from typing_extensions import Doc

from mirabelle.base.data import Batch, samples
from mirabelle.base.errors import InputError
from mirabelle.base.options import declared
from mirabelle.base.progress import bar
from mirabelle.graph.capture import sample_elements
from mirabelle.measurement.accuracy import Score, as_tensor, predictor, score
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.placement import Site, layer_name
from mirabelle.runtimes.artifact import Artifact
from mirabelle.runtimes.clipping import kernels_with_pairs
from mirabelle.verification.causes import Cause, diagnose, diagnose_shipped, maker_of, saturation
from mirabelle.verification.exposure import exposed, is_edited, run_in_float
from mirabelle.verification.integer_reference import IntegerReference
from mirabelle.verification.result import Comparison, LayerCheck, Verification, sqnr
from mirabelle.verification.simulation import elements, simulate
from mirabelle.verification.sites import grid_of, reshaped, sites_among_outputs

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
    """Compares a file, layer by layer, with the quantized network that it was exported from.

    Four forms are compared: float, simulation, integer reference and runtime.

    - model: what `mb.quantize` has returned.
    - artifact: what `mb.export(model, ...)` has returned.
    - data: inputs, with or without targets.
    - samples: how many of them are compared, 256 by default.
    - original: the float network that outputs are compared with; None is `model` without its
      grids, which is the same until it is trained.

    The runtime executes a copy of the artifact with the integers of every layer as outputs. Each
    is compared with the integer reference. Where they differ, the layer is computed again from the
    runtime's own integers before it, so that only its own departure is left. Causes are then tried
    in turn: a fusion that leaves out a rounding, float arithmetic.

    Where this processor's kernels clip pairs of products at 16 bits (x86 without VNNI) the
    reference clips them, too. `Verification.saturated` counts what that changed. The final outputs
    are compared on the artifact itself. Where the runtime's files cannot be edited, the layers'
    values come from a second file made from `model`. They are left out if that one gives other
    outputs than the artifact.

    Returns a `Verification`. Raises `InputError` where `model` is not quantized or does not fit
    the artifact.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(256, 4)
        >>> q = mb.quantize(model, [x])
        >>> file = mb.export(q, "out", inputs=x[:1])
        >>> found = mb.verify(q, file, [x])
        >>> found.agreement.value, [layer.max_off_by for layer in found.layers]
        (1.0, [0, 0])
    """
    described = quantization(model)
    if described is None:
        raise InputError(
            "verify needs the quantized network (mb.quantize); a float artifact can be compared "
            "by mb.measure"
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        bar(f"verifying on {artifact.runtime}", samples) as shown,
    ):
        found = _Comparing(model, described.sites, artifact, original, Path(folder))
        for batch in _pieces(data, samples, max(1, min(32, VALUES // max(1, elements(model))))):
            found.add(batch)
            shown.advance(batch.size)
    return found.verification()


class _Comparing:
    """What is known of a file after the batches that were added.

    copy: the file with the integers of `layers`, by site, among its outputs; merged: the layers
    whose integers it has not. ends: the sites that are outputs of the network. outputs: of each
    batch the reference's, the file's, the simulation's and the float network's.
    examined: the largest difference of each layer that was asked about: 0, 1, or 2 for anything
    larger. unsigned: the reference whose kernels give the file's final outputs, where these differ.
    """

    def __init__(
        self,
        model: fx.GraphModule,
        sites: Iterable[Site],
        artifact: Artifact,
        original: nn.Module | Artifact | None,
        folder: Path,
    ):
        self.model, self.artifact, self.original, self.folder = model, artifact, original, folder
        self.pairs = kernels_with_pairs(artifact.runtime)
        self.reference = IntegerReference(model, pairs=self.pairs)
        layers, self.ends = {s.node: s for s in sites}, sites_among_outputs(model)
        self.names = {n: s.layer for n, s in layers.items()}
        hidden = [n for n in layers if n not in self.ends]
        self.copy, inside = exposed(model, artifact, hidden, folder)
        self.merged = [self.names[n] for n in hidden if n not in inside]
        self.layers = {n: s for n, s in layers.items() if n in self.ends or n in inside}
        self.grids = {n: grid_of(model, s) for n, s in self.layers.items()}
        self.runtime, self.simulated, self.floats = (
            {n: Comparison() for n in self.layers} for _ in range(3)
        )
        self.outputs: list[tuple[np.ndarray, ...]] = []
        self.clipped: Counter[str] = Counter()
        self.examined = dict.fromkeys(self.layers, 0)
        self.causes: dict[str, Cause] = {}
        self.shipped: tuple[str, Cause] | None = None
        self.unsigned: IntegerReference | None = None
        self.changed = False
        self.float_layers: dict[str, str] | None = None

    def add(self, batch: Batch) -> None:
        expected, result = self.reference.run(batch)
        self.clipped.update(self.reference.clipped)
        values = _all_outputs(self.copy, batch)
        inner = iter(values[len(self.artifact.outputs) :])
        integers = {
            n: reshaped(values[self.ends[n]] if n in self.ends else next(inner), expected[n])
            for n in self.layers
        }
        actual = as_tensor(self.artifact.predict(batch)).numpy()
        self._check_shape("output", actual, result)
        for name, found in integers.items():
            self._check_shape(self.names[name], found, expected[name])
        seen = {n: self.grids[n].steps(v) for n, v in integers.items()}
        rounded, simulation = simulate(self.model, batch)
        whole, plain = simulate(self.model, batch, rounded=False)
        for name, grid in self.grids.items():
            zero = grid.zero_point
            self.runtime[name].add(expected[name], seen[name], zero)
            self.simulated[name].add(grid.steps(rounded[name]), expected[name], zero)
            self.floats[name].add(whole[name], rounded[name])
        self._explain(batch, expected, seen)
        differs = not np.array_equal(as_tensor(values[0]).numpy(), actual)
        result = self._shipped_result(batch, seen, result, actual, differs)
        if self.original is not None:
            plain = as_tensor(predictor(self.original)(batch)).numpy()
        # the output of a batch may be a single number
        self.outputs.append(tuple(map(np.atleast_1d, (result, actual, simulation, plain))))

    def _check_shape(self, what: str, got: np.ndarray, want: np.ndarray) -> None:
        if got.shape != want.shape:
            raise InputError(
                f"{what} has shape {got.shape} in {self.artifact}, {want.shape} in the "
                "network; it was exported from another network"
            )

    def _explain(
        self, batch: Batch, expected: dict[str, np.ndarray], seen: dict[str, np.ndarray]
    ) -> None:
        """Looks for causes where some layer differs by more than any batch before has shown."""
        worst = {n: min(2, int(np.abs(expected[n] - seen[n]).max(initial=0))) for n in self.layers}
        if not any(worst[n] > self.examined[n] for n in self.layers):
            return
        self.examined = {n: max(self.examined[n], worst[n]) for n in self.layers}
        if self.float_layers is None:
            self.float_layers = run_in_float(self.artifact, batch.head(1), self.layers)
        found = diagnose(self.model, self.pairs, batch, seen, self.float_layers, self.names)
        self.causes |= {
            n: c
            for n, c in found.items()
            if n not in self.causes or self.causes[n].name == "rounding"
        }

    def _shipped_result(
        self,
        batch: Batch,
        seen: dict[str, np.ndarray],
        result: np.ndarray,
        actual: np.ndarray,
        differs: bool,
    ) -> np.ndarray:
        """The reference's output for the file as it is. differs: whether the file's is another one
        than that of the copy; the first batch decides what is done about it.
        """
        first = not self.outputs
        self.changed = self.changed or differs
        if first and differs and self.pairs == "mlas":
            other = IntegerReference(self.model, pairs="mlas-u8")
            self.unsigned = _nearer(other, batch, result, actual)
        if self.unsigned is not None:  # the file's final outputs are those of these kernels
            result = self.unsigned.run(batch)[1]
            self.clipped.update(self.unsigned.clipped)
        elif first and differs and is_edited(self.artifact):
            few, head = {n: v[:4] for n, v in seen.items()}, batch.head(4)

            def alone(site: str) -> np.ndarray:
                return self._alone(site, head, few[site])

            in_float = self.float_layers or {}
            self.shipped = diagnose_shipped(
                self.model, self.pairs, head, few, alone, in_float, self.names
            )
        return result

    def _alone(self, site: str, batch: Batch, like: np.ndarray) -> np.ndarray:
        """A site's integers in a copy of the file where no other site is an output."""
        wanted = [] if site in self.ends else [site]
        copy, _ = exposed(self.model, self.artifact, wanted, self.folder)
        found = _all_outputs(copy, batch)[self.ends.get(site, -1)]
        return self.grids[site].steps(reshaped(found, like))

    def verification(self) -> Verification:
        result, actual, simulation, plain = (
            np.concatenate(parts) for parts in zip(*self.outputs, strict=True)
        )
        note = "" if is_edited(self.artifact) else OTHER if self.changed else AGAIN
        compared = [n for n in self.layers if note != OTHER or n in self.ends]
        checks = [self._check(n) for n in compared]
        note += " " * bool(note and self.merged) + (
            f"Not in the file, as its converter merged them with others: {', '.join(self.merged)}."
            if self.merged
            else ""
        )
        same = _classes(result) == _classes(actual)
        shipped = None
        if self.shipped is not None:
            site, cause = self.shipped
            shipped = {"layer": self.names[site], "cause": cause.name, "why": str(cause)}
        return Verification(
            self.artifact.runtime,
            len(result),
            checks,
            _agreement(result, actual),
            _ties(result[~same]),
            sqnr(result, actual),
            sqnr(result, simulation),
            sqnr(plain, actual),
            _agreement(plain, actual),
            _agreement(plain, simulation),
            sorted(set(self.reference.floats)),
            shipped,
            note,
            _shares(self.model, self.clipped, len(result)),
        )

    def _check(self, site: str) -> LayerCheck:
        runtime, simulated, cause = self.runtime[site], self.simulated[site], self._cause(site)
        return LayerCheck(
            self.names[site],
            runtime.off_by,
            runtime.exact,
            runtime.sqnr_db,
            str(cause or ""),
            cause.name if cause else "",
            simulated.off_by,
            simulated.exact,
            self.floats[site].sqnr_db,
        )

    def _cause(self, site: str) -> Cause | None:
        """Why the runtime's integers of a site are others than the reference's."""
        runtime, causes = self.runtime[site], self.causes
        clipped = self.clipped[maker_of(self.model, site).name]
        if clipped and runtime.off_by <= 1:
            return saturation(clipped, runtime.count)
        if runtime.off_by == 0:
            return None
        if site in causes and (runtime.off_by <= 1 or causes[site].name != "rounding"):
            return causes[site]
        origin = next(iter(causes), None)
        handed = (
            f"differences that began at {self.names[origin]}"
            if origin and origin != site
            else "differences of layers before it"
        )
        own = f"; its own {causes[site]}" if site in causes else ""
        return Cause("earlier layers", handed + own)


def _all_outputs(artifact: Artifact, batch: Batch) -> tuple:
    found = artifact.predict(batch)
    return found if isinstance(found, tuple) else (found,)


def _pieces(data: Iterable, count: int, size: int) -> Iterable[Batch]:
    for batch in samples(data, count):
        yield from batch._replace(target=None).split(size)


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


def _nearer(
    unsigned: IntegerReference, batch: Batch, result: np.ndarray, actual: np.ndarray
) -> IntegerReference | None:
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
