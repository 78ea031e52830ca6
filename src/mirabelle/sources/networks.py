"""Networks by name: one place that says what a name, a path or an object stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.checks import unwrapped
from mirabelle.base.data import Batch, batches, example_inputs
from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.runtimes import RUNTIMES, TensorSpec, runtime_of
from mirabelle.runtimes.onnx_model import read_model
from mirabelle.sources import packages, weights
from mirabelle.sources.callables import build_model
from mirabelle.sources.exported import read_program
from mirabelle.sources.onnx_networks import onnx_network
from mirabelle.sources.preprocessing import Preprocessing, from_shape

PACKAGES = {
    "timm": packages.timm,
    "torchvision": packages.of_torchvision,
    "hf": packages.hugging_face,
}
FORMS = (
    "a torch.nn.Module, module:callable, an .onnx or a .pt2 file, timm:NAME, torchvision:NAME or "
    "hf:ORG/NAME"
)
LARGEST = 2**28  # elements of an example that a file asks for

Model = nn.Module | str | Path


@dataclass(frozen=True)
class Found:
    """What a name stands for. model: None for an ONNX file, which is read when an example is known.

    example: one sample of what it takes, where that is known. how: how pictures become inputs.
    classes: their names, where the network knows them.
    """

    name: str
    model: nn.Module | None = None
    file: Path | None = None
    example: Batch | None = None
    how: Preprocessing | None = None
    classes: tuple[str, ...] = ()

    def module(self, inputs: Any = None, fold: bool = False) -> nn.Module:
        """The network. inputs: an example; by default the one that is known. fold: the constants
        and batch norms of an ONNX file are merged first (`sources/onnx_networks.py`).
        """
        if self.model is not None:
            return self.model
        assert self.file is not None
        batch = self.example if inputs is None else example_inputs(inputs)
        if batch is None:
            _refuse_open(self.file, file_inputs(self.file))
        assert batch is not None
        return onnx_network(self.file, batch, fold)


def find(named: Any, argument: str = "model") -> Found:
    """What `named` stands for: `FORMS`. A file of weights may stand behind an @, as in
    `timm:mobilenetv3_small_100@weights.safetensors`.

    Raises `InputError` where there is no such network, `MissingRuntimeError` where a package is
    not installed.
    """
    if isinstance(named, torch.export.ExportedProgram):
        raise InputError(f"{argument} is an ExportedProgram; give its .module(), or the .pt2 file")
    if isinstance(named, Found):
        return named
    if not isinstance(named, (str, Path)):
        model = unwrapped(named)
        if isinstance(model, nn.Module):
            return Found(type(model).__name__, model)
        raise InputError(f"{argument} is a {type(named).__name__}; expected {FORMS}")
    text = str(named)
    name, _, file = text.partition("@") if not Path(text).exists() else (text, "", "")
    return _named(name, file or None)


def module(named: Any, inputs: Any = None, fold: bool = False) -> nn.Module:
    """The network that `named` stands for. inputs: an example of what it takes, for ONNX files;
    fold: see `Found.module`.
    """
    if isinstance(named, nn.Module):
        return named
    return find(named).module(inputs, fold)


def with_example(named: Any, inputs: Any = None, data: Any = None) -> tuple[nn.Module, Any]:
    """The network that `named` stands for, and an example of what it takes: the one given, else the
    first batch of `data` where there is one that can be read again, else the one that it knows.
    """
    if isinstance(named, nn.Module):
        if inputs is None:
            raise InputError("give inputs, an example of what the network takes")
        return named, inputs
    found = find(named)
    if inputs is None and data is not None and not isinstance(data, Iterator):
        inputs = next(batches(data, 1, what="data"))._replace(target=None)
    inputs = found.example if inputs is None else inputs
    if inputs is None and found.model is not None:
        raise InputError("give inputs, an example of what the network takes")
    return found.module(inputs), inputs


def for_data(named: Any, data: Iterable | None, argument: str = "model") -> nn.Module:
    """The network that `named` stands for, for batches of `data`, of which an ONNX file whose sizes
    are open needs one.
    """
    if isinstance(named, nn.Module):
        return named
    found = find(named, argument)
    if found.model is not None or found.example is not None or data is None:
        return found.module()
    if isinstance(data, Iterator):
        assert found.file is not None
        raise InputError(open_sizes(found.file.name, file_inputs(found.file)))
    first = next(batches(data, 1))._replace(target=None)
    return found.module(first)


def _named(name: str, file: str | None) -> Found:
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PACKAGES:
        built = PACKAGES[prefix](rest, file)
        example = _of_built(built)
        return Found(name, built.model, None, example, built.how, built.classes)
    path = Path(name)
    if path.suffix in (".onnx", ".pt2") and file is not None:
        raise InputError(f"{name} holds its own weights; leave {file} out")
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".pt2":
        model, example = read_program(path)
        return _with_shape(Found(name, model, None, example))
    if path.exists() or (path.suffix in weights.SUFFIXES and not colon):
        raise InputError(_refusal(path))
    if colon and "/" not in prefix and "\\" not in prefix:
        model = build_model(name)
        if file is not None:
            weights.fill(model, Path(file), name)
        return Found(name, model)
    known = [*RUNTIMES, *PACKAGES]
    raise InputError(f"there is no network {name!r}; expected {FORMS}{_near(name, known)}")


def _near(name: str, known: list[str]) -> str:
    found = did_you_mean(name, known)
    return found if found.startswith("; did") else ""


def _refusal(path: Path) -> str:
    """Why a file or folder is no network by itself, and what to do."""
    if path.is_dir():
        if (path / "model.json").is_file():
            return (
                f"{path} holds what mb.save wrote, which needs the network that it was made from: "
                f"give that one, with --load {path} (in Python mb.load({str(path)!r}, original))"
            )
        if (path / "config.json").is_file():
            return f"{path} is a folder of Hugging Face: give hf:NAME --weights {path}/FILE"
        return f"{path} is a folder and no network; expected {FORMS}"
    if path.suffix in weights.SUFFIXES:
        return (
            f"{path} holds weights alone (or code, which is not run): name the network that they "
            f"belong to, as in timm:NAME --weights {path} or module:callable --weights {path}; or "
            "write it as .pt2 with torch.export.save"
        )
    runtime = runtime_of(path)
    if runtime is not None:
        return (
            f"{path} is a file for {runtime}, which can be measured, verified and compared, not "
            "changed; give the network or the .onnx file that it was made from"
        )
    return f"{path} is no network; expected {FORMS}"


def _onnx(path: Path) -> Found:
    proto = read_model(path, weights=False)
    specs = _specs(proto)
    metadata = {p.key: p.value for p in proto.metadata_props}
    how = None
    if len(specs) == 1:
        told = "its metadata" if set(metadata) & {"imgsz", "mean", "std"} else "its input"
        origin = f"{path.name}, {told}"
        how = from_shape(specs[0].shape, specs[0].dtype, origin, metadata)
    return Found(str(path), None, path, _made_up(specs, how), how)


def file_inputs(path: Path) -> list[TensorSpec]:
    """The inputs of an ONNX file."""
    return _specs(read_model(path, weights=False))


def _specs(proto: Any) -> list[TensorSpec]:
    from onnx import helper

    constants = {t.name for t in proto.graph.initializer}
    found = []
    for value in proto.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
                for d in kind.shape.dim
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        found.append(TensorSpec(value.name, shape, dtype))
    return found


def _made_up(specs: list[TensorSpec], how: Preprocessing | None) -> Batch | None:
    """One sample, where all sizes but the first are known."""
    if how is not None and len(specs) == 1:
        return Batch((_values((1, *how.shape), how.dtype),), {}, None)
    tensors = []
    for spec in specs:
        if spec.shape is None or None in spec.shape[1:]:
            return None
        shape = [s or 1 for s in spec.shape]
        if np.prod(shape, dtype=float) > LARGEST:
            return None
        tensors.append(_values(tuple(shape), spec.dtype))
    return Batch(tuple(tensors), {}, None)


def _values(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Normal numbers, always the same; zeros where they count something."""
    kind = getattr(torch, dtype)
    if not kind.is_floating_point:
        return torch.zeros(shape, dtype=kind)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)


def _refuse_open(path: Path, specs: list[TensorSpec]) -> None:
    raise InputError(open_sizes(path.name, specs))


def open_sizes(name: str, specs: list[TensorSpec]) -> str:
    """What to say where a file leaves sizes open that have to be known."""
    said = ", ".join(f"{s.name} ({_shape(s)} {s.dtype})" for s in specs)
    wanted = " ".join(_asked(s) for s in specs if s.shape is not None)
    return (
        f"{name} leaves the sizes of its inputs open: {said}; say them as --input "
        f"{wanted or 'NAME:SIZES'} with numbers for ? (in Python inputs=), or give --data"
    )


def _asked(spec: TensorSpec) -> str:
    """`ids:1,?:int64`; a scalar is a value that somebody has to say: `sr:int64=?`."""
    sizes = [str(v or ("1" if i == 0 else "?")) for i, v in enumerate(spec.shape or ())]
    kind = "" if spec.dtype == "float32" else f":{spec.dtype}"
    return f"{spec.name}:{','.join(sizes)}{kind}" if sizes else f"{spec.name}{kind}=?"


def _shape(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "any shape"
    return "x".join("?" if s is None else str(s) for s in spec.shape) or "scalar"


def _of_built(built: packages.Built) -> Batch | None:
    if built.inputs:
        return Batch((), dict(built.inputs), None)
    if built.how is None:
        return None
    return Batch((_values((1, *built.how.shape), built.how.dtype),), {}, None)


def _with_shape(found: Found) -> Found:
    """With the pictures that its example shows, where it takes one input of pictures."""
    if found.example is None or len(found.example.tensors) != 1:
        return found
    tensor = found.example.tensors[0]
    dtype = str(tensor.dtype).removeprefix("torch.")
    origin = f"{Path(found.name).name}, its example"
    return replace(found, how=from_shape((None, *tensor.shape[1:]), dtype, origin))


def identity(named: str | Mapping[str, Any]) -> tuple[str | None, list[Path]]:
    """The `module:callable` that a network comes from, and the files."""
    text = named if isinstance(named, str) else str(named)
    name, _, file = text.partition("@") if not Path(text).exists() else (text, "", "")
    files = [Path(file)] if file and file != packages.UNTRAINED else []
    if Path(name).suffix in (".onnx", ".pt2"):
        return None, [Path(name), *files]
    return (None if name.partition(":")[0] in PACKAGES else name), files


def check_named(value: str) -> None:
    """`InputError` for what is no network by its form alone."""
    name = value.partition("@")[0]
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PACKAGES:
        if not rest:
            raise InputError(f"expected a name behind {prefix}:")
        return
    if Path(name).suffix in (".onnx", ".pt2"):
        return
    if not colon:
        raise InputError(f"expected {FORMS.removeprefix('a torch.nn.Module, ')}")
