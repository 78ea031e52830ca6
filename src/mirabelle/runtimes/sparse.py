"""Sparse networks: each layer in the form that is faster for it on this machine, dense or sparse;
and dense altogether where that is faster.

The sparse kernels are MNN's. `save` times every layer in every form inside the network, puts the
fastest of each together, and times the result against the dense network in every runtime that is
installed. What was found is the artifact: a small JSON file that names the runtime and its file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError, MissingRuntimeError
from mirabelle.base.files import copy_file, read_json, sha256, write_json
from mirabelle.runtimes import mnn, onnxruntime, openvino
from mirabelle.runtimes.artifact import LayerTime, Runtime, Session, check_present, unreadable
from mirabelle.runtimes.sparse_forms import ROUNDS, SECONDS, Variants, fastest, module_name

FORMAT = 1
SAME = 1e-4  # of the largest output: how far sums in another order may be off
DENSE: dict[str, Runtime] = {
    r.name: r for r in (onnxruntime.RUNTIME, openvino.RUNTIME, mnn.RUNTIME)
}


@dataclass(frozen=True)
class TimedLayer:
    """A layer with a constant weight. shape: of the weight as (outputs, inputs of one output).
    zeros: their share. kind: as in `weights`.

    milliseconds: in each form that was timed, the median; empty for a layer with too few zeros to
    be stored sparse. form: the one that was taken.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    zeros: float
    milliseconds: dict[str, float]
    form: str


@dataclass(frozen=True)
class Choice:
    """What `save` found. runtime, file: what runs. milliseconds: of the whole network, p50, by
    candidate; `sparse` is MNN with each layer in its own form.
    """

    runtime: str
    file: str
    threads: int
    milliseconds: dict[str, float]
    layers: tuple[TimedLayer, ...]

    @property
    def sparse(self) -> bool:
        return self.milliseconds.get("sparse") == min(self.milliseconds.values())

    def __str__(self) -> str:
        dense = {k: v for k, v in self.milliseconds.items() if k != "sparse"}
        fastest = min(dense, key=dense.__getitem__)
        took = sum(layer.form != "dense" for layer in self.layers)
        if self.sparse:
            faster = dense[fastest] / self.milliseconds["sparse"]
            said = (
                f"sparse on mnn, {took} of {len(self.layers)} layers sparse: "
                f"{self.milliseconds['sparse']:.3f} ms, {faster:.2f} times as fast as dense "
                f"on {fastest}"
            )
        else:
            said = f"dense on {self.runtime}: no sparse form was faster"
        times = ", ".join(f"{k} {dense[k]:.3f} ms" for k in sorted(dense, key=dense.__getitem__))
        rows = [f"{said} ({times})"]
        for layer in self.layers:
            times = ", ".join(f"{form} {ms:.3f} ms" for form, ms in layer.milliseconds.items())
            rows.append(
                f"  {layer.form:<6} {layer.name}: {layer.kind}, {100 * layer.zeros:.1f} % zeros"
                + (f" ({times})" if times else "")
            )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "layers": [asdict(layer) for layer in self.layers],
            "sparse": self.sparse,
        }


# --- the artifact
# --------------------------------------------------------------------------------------------------


def example_arrays(onnx_path: Path) -> list[np.ndarray]:
    """One sample for an ONNX file, of noise: speed does not depend on what floats hold.
    `InputError` where more than the batch is left open.
    """
    onnxruntime.check(onnx_path)
    session = onnxruntime.open(onnx_path, 1)
    generator = np.random.default_rng(0)
    found = []
    for spec in session.inputs:
        if spec.shape is None or None in spec.shape[1:]:
            raise InputError(
                f"{onnx_path.name} leaves the shape of {spec.name!r} open ({spec}); a choice "
                "that is timed needs an input of fixed size"
            )
        shape = [1 if d is None else d for d in spec.shape]
        array = generator.normal(size=shape) if spec.dtype.startswith("float") else np.zeros(shape)
        found.append(array.astype(spec.dtype))
    return found


def _candidates(onnx_path: Path, folder: Path) -> dict[str, Path]:
    """The dense network in every runtime that is installed."""
    found = {}
    for name, runtime in DENSE.items():
        try:
            runtime.version()
        except MissingRuntimeError:
            continue
        assert runtime.save is not None
        found[name] = runtime.save(onnx_path, folder / name)
    return found


def choose(
    onnx_path: Path,
    folder: Path,
    threads: int = 1,
    arrays: list[np.ndarray] | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Path:
    """Writes `folder/<stem>.sparse` and the files of what is fastest with so many threads; see the
    module.

    arrays: an example input. rounds, seconds: of timing, for the layers and for the whole network.
    Raises `InputError` where a candidate's outputs are not those of ONNX Runtime to `SAME` of the
    largest.
    """
    from mirabelle.measurement.latency import (
        alternate,
    )  # the only import upwards: there is one clock

    onnx_path, folder = Path(onnx_path), Path(folder)
    mnn.version()
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path} is not there")
    given = example_arrays(onnx_path) if arrays is None else arrays
    with tempfile.TemporaryDirectory() as temporary:
        there = Path(temporary)
        files = _candidates(onnx_path, there)
        variants = Variants(onnx_path, there / "variants")
        times = (
            variants.time(there / "variants", given, threads, rounds) if variants.matched else {}
        )
        forms = {name: fastest(by_form) for name, by_form in times.items()}
        if any(form != "dense" for form in forms.values()):
            files["sparse"] = variants.write(there / "sparse" / f"{onnx_path.stem}.mnn", forms)
        sessions = {
            name: DENSE.get(name, mnn.RUNTIME).open(path, threads) for name, path in files.items()
        }
        _check_same(sessions, given, onnx_path)
        latencies = alternate(
            {n: lambda s=s: s.run(given) for n, s in sessions.items()},
            400,
            seconds=seconds,
            pin=threads == 1,
        )
        milliseconds = {n: latency.p50_ms for n, latency in latencies.items()}
        best = min(milliseconds, key=milliseconds.__getitem__)
        name = best if best in DENSE else "mnn"
        layers = tuple(
            TimedLayer(
                module_name(w.name),
                w.kind,
                (w.rows.shape[0], w.rows.shape[1]),
                float((w.rows == 0).mean()),
                times.get(w.name, {}),
                forms.get(w.name, "dense") if best == "sparse" else "dense",
            )
            for w in variants.weights
        )
        parts = [copy_file(p, folder / p.name) for p in reversed(DENSE[name].files(files[best]))]
        choice = Choice(name, parts[-1].name, threads, milliseconds, layers)
    target = folder / f"{onnx_path.stem}.sparse"
    write_json(target, {"format": FORMAT, "sha256": sha256(parts[-1]), **choice.to_dict()})
    return target


def _check_same(sessions: Mapping[str, Session], arrays: list[np.ndarray], onnx_path: Path) -> None:
    expected = sessions["onnxruntime"].run(arrays)
    for name, session in sessions.items():
        for a, b in zip(expected, session.run(arrays), strict=True):
            error, size = (
                float(np.abs(a.astype("float64") - b).max(initial=0)),
                float(np.abs(a).max(initial=0)),
            )
            if error > SAME * size:
                raise InputError(
                    f"{onnx_path.name} gives other outputs on {name} than on onnxruntime: off "
                    f"by {error:.2g}, the largest is {size:.2g}; report this network"
                )


def choice(path: str | Path) -> Choice:
    """What was chosen for an artifact, by the path of its `.sparse` file. `InputError` where that
    is damaged.
    """
    path = Path(path)
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise InputError(
                f"{path} is of format {content['format']!r}; this version reads format {FORMAT}"
            )
        layers = tuple(
            TimedLayer(**{**layer, "shape": tuple(layer["shape"])}) for layer in content["layers"]
        )
        found = Choice(
            content["runtime"], content["file"], content["threads"], content["milliseconds"], layers
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, "sparse", error) from error
    if found.runtime not in DENSE or Path(found.file).name != found.file or not found.milliseconds:
        raise unreadable(
            path, "sparse", ValueError(f"it names {found.file!r} for {found.runtime!r}")
        )
    return found


def _inner(path: Path) -> tuple[Runtime, Path]:
    found = choice(path)
    inner = path.parent / found.file
    check_present([path, inner])
    if sha256(inner) != read_json(path).get("sha256"):
        raise InputError(
            f"{inner} is not the file that {path.name} was written for; it was damaged or replaced"
        )
    return DENSE[found.runtime], inner


def files(path: Path) -> list[Path]:
    runtime, inner = _inner(path)
    return [path, *runtime.files(inner)]


def open(path: Path, threads: int) -> Session:
    runtime, inner = _inner(path)
    runtime.check(inner)
    return runtime.open(inner, threads)


def profile(path: Path, threads: int, arrays: list[np.ndarray], runs: int) -> list[LayerTime]:
    runtime, inner = _inner(path)
    assert runtime.profile is not None
    return runtime.profile(inner, threads, arrays, runs)


def version() -> str:
    return mnn.version()


def save(onnx_path: Path, folder: Path) -> Path:
    return choose(onnx_path, folder)


RUNTIME = Runtime("sparse", ".sparse", version, files, open, profile, save, int8=False)
