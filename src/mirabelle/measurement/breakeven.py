"""From what share of zeros on a sparse network is faster than a dense one: measured, for each kind
of layer and for the whole, on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.runtimes.onnx_model import read_model

if TYPE_CHECKING:
    from mirabelle.runtimes.sparse import Choice

SPARSITIES = (0.7, 0.8, 0.9, 0.95, 0.98)
BLOCKS = {"1x1": 1, "4x1": 4}  # zeros of single weights, and of blocks of four outputs
NETWORK = "whole network"
ROUNDS, SECONDS = 10, 5.0


@dataclass(frozen=True)
class Limits:
    """What one core, or `threads` of them, can do at best, as measured: giga multiply-accumulates a
    second in float32, gigabytes read from memory a second.
    """

    threads: int
    gmacs: float
    gigabytes: float

    def milliseconds(self, macs: float, read: float) -> float:
        """The least time for so many multiply-accumulates and so many bytes from memory."""
        return max(macs / self.gmacs, read / self.gigabytes) / 1e6


@dataclass(frozen=True)
class BreakEven:
    """How many times as fast a sparse network is as the dense one.

    speedups: by kind of layer (`linear`, `1x1 convolution`, ..., and `whole network`) and form of
    the zeros, one for each of `sparsities`. Layers: MNN's sparse kernel over MNN's dense one,
    summed over the kind. Whole network: each layer in its faster form, over the fastest dense
    runtime; None where nothing sparse was faster, and dense runs.
    layers: how many there are of a kind. dense: the fastest dense runtime and its milliseconds.
    limits: what the machine can do at best; least: by form, the least milliseconds at each sparsity
    that its multiply-accumulates and the reading of its weights take at these limits.
    """

    sparsities: list[float]
    speedups: dict[str, dict[str, list[float | None]]]
    layers: dict[str, int]
    dense: dict[str, float]
    limits: Limits
    least: dict[str, list[float]]
    milliseconds: dict[str, list[float]]
    threads: int

    def crossing(self, kind: str, form: str) -> float | None:
        """The sparsity from which on sparse is faster, on straight lines between those measured;
        the lowest of these where it is faster already, None where it never is.
        """
        return crossing(self.sparsities, self.speedups[kind][form])

    def to_dict(self) -> dict[str, Any]:
        found = {k: {f: self.crossing(k, f) for f in forms} for k, forms in self.speedups.items()}
        return {**asdict(self), "break_even": found}

    def __str__(self) -> str:
        fastest = min(self.dense, key=self.dense.__getitem__)
        times = ", ".join(
            f"{k} {self.dense[k]:.3f} ms" for k in sorted(self.dense, key=self.dense.__getitem__)
        )
        lines = [f"dense: {times}; {self.threads} thread(s)"]
        lines.append(
            f"{'times as fast at zeros of':<34}"
            + "".join(f"{100 * s:>7.4g} %" for s in self.sparsities)
            + "   break-even"
        )
        for kind, forms in self.speedups.items():
            for form, values in forms.items():
                at = self.crossing(kind, form)
                name = f"{kind}, {form}" + (
                    f" ({self.layers[kind]})" if kind in self.layers else f", over {fastest}"
                )
                row = "".join(f"{'dense' if v is None else f'{v:.2f}':>9}" for v in values)
                lines.append(f"{name:<34}{row}   {'never' if at is None else f'{100 * at:.0f} %'}")
        for form, values in self.least.items():
            dense = self.dense[fastest]
            lines.append(
                f"{f'limit of the machine, {form}':<34}"
                + "".join(f"{dense / v:>9.1f}" for v in values)
            )
        lines.append(
            f"{self.limits.threads} core(s): {self.limits.gmacs:.1f} G multiply-accumulates and "
            f"{self.limits.gigabytes:.1f} GB a second at best, measured"
        )
        return "\n".join(lines)


def crossing(at: Sequence[float], speedups: Sequence[float | None]) -> float | None:
    """Where the curve comes above 1 for the last time from below, by linear interpolation; None
    counts as 1.
    """
    values = [1.0 if v is None else v for v in speedups]
    if values[-1] <= 1:
        return None
    for i in range(len(values) - 1, 0, -1):
        if values[i - 1] <= 1:
            return at[i - 1] + (at[i] - at[i - 1]) * (1 - values[i - 1]) / (
                values[i] - values[i - 1]
            )
    return at[0]


def limits(threads: int = 1) -> Limits:
    """The best of several products of large matrices, and of several sums over an array far larger
    than any cache.
    """
    import time

    import torch

    def best(function: Callable[[], Any], runs: int) -> float:
        times = []
        for _ in range(runs):
            begun = time.perf_counter()
            function()
            times.append(time.perf_counter() - begun)
        return min(times)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            size = 1024
            a, b, large = torch.randn(size, size), torch.randn(size, size), torch.ones(1 << 26)
            multiply, read = best(lambda: a @ b, 10), best(large.sum, 5)
    finally:
        torch.set_num_threads(before)
    return Limits(threads, size**3 / multiply / 1e9, large.numel() * 4 / read / 1e9)


def break_even(
    onnx_path: Path,
    arrays: list[np.ndarray],
    sparsities: Sequence[float] = SPARSITIES,
    threads: int = 1,
) -> BreakEven:
    """Times an ONNX file with its weights zeroed at random to each sparsity, singly and in blocks
    of four outputs; speed does not depend on which are zero.

    Needs MNN. Raises `InputError` for sparsities that are none, and for a network without a layer
    that could be sparse.
    """
    import onnx

    from mirabelle.base.progress import bar
    from mirabelle.measurement.onnx_macs import onnx_macs_by_value
    from mirabelle.runtimes import mnn, sparse, sparse_forms

    mnn.version()
    points = check_sparsities(sparsities)
    model = read_model(onnx_path)
    layers = sparse_forms.weights(model)
    if not layers:
        raise InputError(
            f"{onnx_path.name} has no layer that could be sparse: no ungrouped convolution and "
            "no product with a constant matrix"
        )
    machine, (macs, _, _) = limits(threads), onnx_macs_by_value(onnx_path)
    work = sum(macs.get(w.values[0], 0) for w in layers)
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
    speedups: dict[str, dict[str, list[float | None]]] = {kind: {} for kind in [*counts, NETWORK]}
    least: dict[str, list[float]] = {}
    milliseconds: dict[str, list[float]] = {}
    dense: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        bar("break-even", len(points) * len(BLOCKS)) as shown,
    ):
        for form, share in product(BLOCKS, points):
            path = Path(folder) / "network.onnx"
            onnx.save(zeroed(model, share, BLOCKS[form]), path)
            found = sparse.choice(
                sparse.choose(path, Path(folder) / "out", threads, arrays, ROUNDS, SECONDS)
            )
            for runtime, ms in found.milliseconds.items():
                if runtime != "sparse":
                    dense.setdefault(runtime, []).append(ms)
            for kind, value in _speedups(found, form, counts).items():
                speedups[kind].setdefault(form, []).append(value)
            milliseconds.setdefault(form, []).append(min(found.milliseconds.values()))
            left = sum(macs.values()) - share * work
            bytes_read = (
                4 * sum(w.rows.size for w in layers) * (1 - share) * (1 + 1 / BLOCKS[form])
            )  # a value, and an index for each block
            least.setdefault(form, []).append(machine.milliseconds(left, bytes_read))
            shown.advance()
    medians = {runtime: float(np.median(values)) for runtime, values in dense.items()}
    return BreakEven(points, speedups, counts, medians, machine, least, milliseconds, threads)


def _speedups(found: Choice, form: str, kinds: Iterable[str]) -> dict[str, float | None]:
    """How many times as fast one form is as the dense one, by kind of layer and for the whole;
    None where nothing of it is sparse.
    """
    result: dict[str, float | None] = {}
    for kind in kinds:
        rows = [
            layer.milliseconds
            for layer in found.layers
            if layer.kind == kind and form in layer.milliseconds
        ]
        result[kind] = sum(r["dense"] for r in rows) / sum(r[form] for r in rows) if rows else None
    fastest = min(ms for runtime, ms in found.milliseconds.items() if runtime != "sparse")
    result[NETWORK] = fastest / found.milliseconds["sparse"] if found.sparse else None
    return result


def check_sparsities(asked: Any) -> list[float]:
    """The shares in order, each once; `InputError` where they are none."""
    given = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else []
    if not given or any(
        isinstance(s, bool) or not isinstance(s, (int, float)) or not 0 < s < 1 for s in given
    ):
        raise InputError(
            f"break_even is {asked!r}; expected True, or shares of zeros, each above 0 and "
            "below 1, such as (0.8, 0.9, 0.95)"
        )
    return sorted({float(s) for s in given})


def zeroed(model: Any, share: float, block: int) -> Any:
    """A copy of an ONNX model in which this share of each layer's weights is zero, singly or in
    blocks of so many outputs, at random with a fixed seed.
    """
    import onnx

    from mirabelle.runtimes import sparse_forms

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    generator = np.random.default_rng(0)
    by_name = {i.name: i for i in copy.graph.initializer}
    for weight in sparse_forms.weights(model):
        outputs, columns = weight.rows.shape
        units = -(-outputs // block) * columns
        kept = np.ones(units, bool)
        kept[generator.permutation(units)[: round(share * units)]] = False
        rows = weight.rows * np.repeat(kept.reshape(-1, columns), block, 0)[:outputs]
        tensor = by_name[weight.name]
        array = (rows.T if weight.transposed else rows).reshape(tuple(tensor.dims))
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), weight.name))
    return copy
