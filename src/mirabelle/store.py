"""`mb.save` and `mb.load`: pruned, sparse and quantized networks as safetensors and JSON; no
pickle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_module, clone, load_state, tensors_of
from mirabelle.base.compression_of_zeros import decode, encode
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, MirabelleError, did_you_mean, warn
from mirabelle.base.files import (
    as_path,
    read_json,
    read_tensors,
    sealed,
    sha256,
    unsealed,
    write_json,
    write_tensors,
)
from mirabelle.base.model_card import NAME as CARD
from mirabelle.base.model_card import card, write_card
from mirabelle.base.modes import usual
from mirabelle.base.options import options_of, shown
from mirabelle.channels.onnx_numbers import renew
from mirabelle.channels.rewrite import FORM, rebuild_graph_form
from mirabelle.channels.sizes import replace_tensors
from mirabelle.graph.architecture import architecture, difference
from mirabelle.graph.structure import STRUCTURE, restructured, structure_of
from mirabelle.onnx_files.read import network as network_of
from mirabelle.onnx_files.source import ONNX_FORM
from mirabelle.quantization.api import quantize
from mirabelle.quantization.simulation.description import Quantization, quantization
from mirabelle.quantization.simulation.graph import example_of, rebuild
from mirabelle.quantization.simulation.notes import FLOAT_SIZES, float_sizes_of
from mirabelle.sparsity import masks

# In the order in which `save` writes them.
FILES: tuple[str, ...] = ("model.safetensors", CARD, "model.json")
FORMAT = 4
# In the order in which `save` writes them.
FILES: tuple[str, ...] = ("model.safetensors", CARD, "model.json")
NEEDED = tuple(
    "architecture structure quantization graph_form onnx_form float_sizes sparse sha256".split()
)
LARGEST_INPUT = 2**28  # elements of the example that a file may ask for


def save(model: nn.Module, folder: str | Path) -> Path:
    """Writes a network so that `mb.load` can build it again, without pickle.

    - model: what any verb has returned, or a plain `nn.Module`. It stays as it is.
    - folder: gets `model.safetensors` (weights and buffers, with their sizes), `model.json` (what
      else is needed), and a `README.md` with the metadata that hubs read. One of yours stays. The
      folder is made where it is missing.

    Of weights that `mb.sparsify` made sparse only those that are not zero are written. The weights
    are written first, the JSON with the checksums of both last. So an interrupted save leaves no
    folder that loads as something else. Returns the folder.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> small = mb.prune(model, torch.zeros(1, 4), params=0.5)
        >>> sorted(file.name for file in mb.save(small, "small").iterdir())
        ['README.md', 'model.json', 'model.safetensors']
    """
    folder = as_path(folder)
    model = check_module(model)
    described = quantization(model)
    tensors, sparse = _compact(model)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_card(folder, _card(model, described))
    content = {
        "format": FORMAT,
        "network": type(model).__name__ if described is None else "quantized",
        "architecture": architecture(model),
        STRUCTURE: structure_of(model),
        "quantization": None if described is None else described.to_dict(),
        "graph_form": getattr(model, "meta", {}).get(FORM),
        "onnx_form": getattr(model, "meta", {}).get(ONNX_FORM),
        "float_sizes": None if described is None else float_sizes_of(model),
        "sparse": sparse,
        "sha256": sha256(folder / "model.safetensors"),
    }
    write_json(folder / "model.json", sealed(content))
    return folder


def _card(model: nn.Module, described: Quantization | None) -> str:
    """What a hub and its readers are told of a saved network."""
    form = getattr(model, "meta", {})
    sparse = masks.zeros(model)
    rows = [("parameters", f"{sum(p.numel() for p in model.parameters())}")]
    tags = []
    if described is not None:
        tags.append(f"int{described.weight_bits}")
        rows.append(("bits of weights", f"{described.weight_bits}"))
        rows.append(("bits of activations", f"{described.bits}"))
    if sparse:
        share = sum(int(m.sum()) for m in sparse.values()) / sum(m.numel() for m in sparse.values())
        tags.append("sparse")
        rows.append(("zeros of the sparse weights", f"{share:.4f}"))
    what = "quantized network" if described is not None else f"`{type(model).__name__}`"
    file = form.get(ONNX_FORM) is not None
    return card(f"A {what}, compressed", tags, rows, '"net.onnx"' if file else "original")


def load(folder: str | Path, model: nn.Module | str | Path) -> nn.Module:
    """The network that `mb.save` wrote into `folder`.

    - folder: what `mb.save` has returned.
    - model: the original, unpruned network, freshly built, or a name of one. It stays as it is and
      its weights do not matter. The path of the ONNX file where the network came from one.

    Returns the network in eval mode. The files may come from strangers: nothing in them is run.
    Raises `InputError` where the files are damaged or do not belong together, and where `model` is
    another network: of other sizes, modules or hyperparameters, such as another stride.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> small = mb.prune(build(), torch.zeros(1, 4), params=0.5)
        >>> again = mb.load(mb.save(small, "small"), build())
        >>> torch.equal(again[0].weight, small[0].weight)
        True
    """
    folder = as_path(folder)
    described = _description(folder)
    with usual():  # a graph that is captured again has the nodes that it was saved with
        return _loaded(folder, described, model)


def _loaded(folder: Path, described: dict[str, Any], model: nn.Module | str | Path) -> nn.Module:
    if isinstance(model, (str, Path)):
        model = _of_file(model, described, folder)
    model = check_module(model)
    sparse = described["sparse"]
    tensors = _whole(read_tensors(folder / "model.safetensors")[0], sparse, folder, _largest(model))
    result = _in_saved_form(model, described, tensors, folder)
    if departs := difference(described["architecture"], architecture(result)):
        raise InputError(
            f"{folder} holds another network: {departs}; load needs the network that was saved, "
            "unpruned"
        )
    _fill(result, tensors, type(model).__name__, folder)
    masks.mark(result, {name: entry["block"] for name, entry in sparse.items()})
    return result.eval()


def _of_file(path: str | Path, described: dict[str, Any], folder: Path) -> nn.Module:
    """The network of the ONNX file that the saved one came from, read as it was."""
    form = described["onnx_form"]
    if described["quantization"] is None and form is None:
        raise InputError(
            f"{folder} holds a float network that came from no ONNX file; load it with the network "
            f"that it was made from, not with {path}"
        )
    if form is None:
        with _sound(folder, "no quantization"):
            example = example_of(described["quantization"] or {})
        return network_of(path, example)
    with _sound(folder, "no inputs of an ONNX file"):
        example = _zeros(form["inputs"])
    return network_of(path, example, fold=False)


def _zeros(inputs: list[Any]) -> Batch:
    named = [(n, torch.zeros(shape, dtype=getattr(torch, t))) for n, shape, t in inputs]
    return Batch(tuple(t for n, t in named if not n), {n: t for n, t in named if n}, None)


def _description(folder: Path) -> dict[str, Any]:
    """What `model.json` says, once it is sound and the weights are those that it was written
    for.
    """
    if not (folder / "model.json").is_file():
        raise InputError(
            f"{folder} holds no network: there is no model.json; it was saved elsewhere, or the "
            "save was interrupted"
        )
    described = read_json(folder / "model.json")
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'model.json'} is of format "
            f"{shown(described.get('format') if isinstance(described, dict) else None)}; this "
            f"version reads format {FORMAT}"
        )
    described = unsealed(described, folder / "model.json")
    with _sound(folder, "no network"):
        _check_numbers(described)
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} holds no weights: there is no model.safetensors")
    if sha256(folder / "model.safetensors") != described["sha256"]:
        raise InputError(
            f"{folder / 'model.safetensors'} is not the file that model.json was written for; "
            "it was damaged or replaced"
        )
    return described


@contextmanager
def _sound(folder: Path, what: str) -> Iterator[None]:
    """What fails inside, because `model.json` says something that makes no sense, becomes an
    `InputError`. A checksum tells of damage, not of what a stranger wrote.
    """
    try:
        yield
    except MirabelleError:
        raise
    except Exception as error:
        raise InputError(
            f"{folder / 'model.json'} describes {what} ({type(error).__name__}: {error}); it was "
            "damaged or written by something else"
        ) from error


def _check_numbers(described: Mapping[str, Any]) -> None:
    """Raises where something is missing, and where a number would make `load` ask for more than any
    network has.
    """
    for name in NEEDED:
        if name not in described:
            raise KeyError(name)
    for line in described["architecture"]:
        if not isinstance(line, str):
            raise TypeError(f"a line of the architecture is {shown(line)}")
    for entry in described["sparse"].values():
        _check_shape(entry["shape"])
    form = described["graph_form"]
    inputs = [] if form is None else list(form["inputs"])
    if (form := described["onnx_form"]) is not None:
        inputs += form["inputs"]
        for numbers in (v for found in form["numbers"].values() for v in found.values()):
            if not all(type(v) is int for v in numbers):
                raise ValueError(f"numbers of a node: {shown(numbers)}")
    if (found := described["quantization"]) is not None:
        inputs += found["inputs"]
        declared = options_of(quantize)
        for name in ("bits", "weight_bits"):
            if wrong := declared["bits"].refuse(found[name]):
                raise ValueError(f"{name} is {shown(found[name])}{wrong}")
        for name, bits in found["precision"].items():
            if wrong := declared["bits"].refuse(bits):
                raise ValueError(f"precision of {name} is {shown(bits)}{wrong}")
    for _, shape, dtype in inputs:
        _check_shape(shape)
        if math.prod(shape) > LARGEST_INPUT:
            raise ValueError(f"an input of {math.prod(shape)} elements")
        if not isinstance(getattr(torch, dtype), torch.dtype):
            raise ValueError(f"an input of type {dtype!r}")


def _check_shape(shape: Any) -> None:
    if not isinstance(shape, list) or any(type(s) is not int or s < 0 for s in shape):
        raise ValueError(f"the shape {shown(shape)}")


def _largest(model: nn.Module) -> int:
    """The elements of the largest tensor of the original: nothing saved is larger."""
    return max((t.numel() for t in tensors_of(model).values()), default=0)


def _in_saved_form(
    model: nn.Module, described: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path
) -> nn.Module:
    """A copy of the original with the sizes, the graph form and the quantization that were
    saved.
    """
    result = clone(model)
    form = described["graph_form"]
    own = described["float_sizes"] or {n: list(t.shape) for n, t in tensors.items()}
    structure = described[STRUCTURE]
    with _sound(folder, "no sizes"):
        result = restructured(result, form[STRUCTURE] if form else structure)
        _resize(result, form["sizes"] if form else own)
    if described["onnx_form"] is not None:
        with _sound(folder, "no numbers of an ONNX file"):
            renew(result, described["onnx_form"])
    if form:
        with _sound(folder, "no graph form"):
            result = rebuild_graph_form(result, form)
            if any(structure.values()):
                result = restructured(result, structure)
                _resize(result, own)
    if described["quantization"] is not None:
        with _sound(folder, "no quantization"):
            result = rebuild(result, described["quantization"])
        result.meta |= {
            FLOAT_SIZES: described["float_sizes"],
            STRUCTURE: structure,
            FORM: form,
            ONNX_FORM: described["onnx_form"],
        }
    return result


def _fill(result: nn.Module, tensors: dict[str, torch.Tensor], name: str, folder: Path) -> None:
    """Puts the saved tensors into a network whose class is called `name`."""
    own = tensors_of(result)
    for key, tensor in tensors.items():
        if (
            key in own and own[key].dtype != tensor.dtype
        ):  # load_state_dict would convert it, and give other outputs than what was saved
            raise InputError(
                f"{key} is saved as {tensor.dtype}, {name} has "
                f"{own[key].dtype}; load needs the network in the type that was saved"
            )
    try:
        load_state(result, tensors)
    except RuntimeError as error:
        raise InputError(
            f"{folder} holds another network: {str(error).splitlines()[-1].strip()}"
        ) from None


def _compact(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """The state to write, sparse weights as `<name>/<part>`, and block and shape of each of
    them.
    """
    tensors, sparse = tensors_of(model), {}
    if left_out := sorted(model.state_dict().keys() - tensors.keys()):
        warn(
            f"{left_out[0]} is no tensor and is not saved; after load it is that of the network "
            "given to load"
        )
    for name, block in masks.blocks(model).items():
        sparse[name] = {"block": block, "shape": list(tensors[name].shape)}
        if parts := encode(tensors[name], block):
            del tensors[name]
            tensors |= {f"{name}/{part}": t for part, t in parts.items()}
    return tensors, sparse


def _whole(
    tensors: dict[str, torch.Tensor], sparse: Mapping[str, Any], folder: Path, most: int
) -> dict[str, torch.Tensor]:
    """All tensors, sparse ones decoded; none has more than `most` elements."""
    with _sound(folder, "no sparse weights"):
        for name, entry in sparse.items():
            block, shape = entry["block"], entry["shape"]
            if math.prod(shape) > most or not 0 < block <= max(1, most):
                raise ValueError(f"{name} of shape {shape} in blocks of {block}")
            parts = {
                p: tensors.pop(f"{name}/{p}")
                for p in ("values", "gaps", "bits")
                if f"{name}/{p}" in tensors
            }
            if parts:
                tensors[name] = decode(parts, shape, block, f"{name} in {folder}")
            elif name not in tensors:
                raise KeyError(name)
    return tensors


def _resize(model: nn.Module, known: Mapping[str, list[int]]) -> None:
    for shape in known.values():
        _check_shape(shape)
    sizes = {n: tuple(s) for n, s in known.items()}
    own = tensors_of(model, keep_vars=True)
    for name in [*own, *sizes]:
        if name not in own or name not in sizes:
            where = "the saved network" if name in own else type(model).__name__
            raise InputError(
                f"{where} has no {name!r}{did_you_mean(name, sizes if name in own else own)} "
                "load needs the network that was saved, unpruned"
            )
        if own[name].ndim != len(sizes[name]):
            raise InputError(
                f"{name} is saved with sizes {sizes[name]}, {type(model).__name__} has "
                f"{tuple(own[name].shape)}; it is another network"
            )
        if any(new > old for new, old in zip(sizes[name], own[name].shape)):
            raise InputError(
                f"{name} is saved with sizes {sizes[name]}, which are larger than the "
                f"{tuple(own[name].shape)} of {type(model).__name__}; load needs the network that "
                "was saved, unpruned"
            )
    new = {
        n: torch.zeros(s, dtype=own[n].dtype) for n, s in sizes.items() if tuple(own[n].shape) != s
    }
    replace_tensors(model, new)
