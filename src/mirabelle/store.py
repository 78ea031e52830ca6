"""`mb.save` and `mb.load`: pruned, sparse and quantised networks as safetensors and JSON; no
pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone, load_state
from mirabelle.base.compression_of_zeros import decode, encode
from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.files import read_json, read_tensors, sha256, write_json, write_tensors
from mirabelle.channels.rewrite import FORM, rebuild_graph_form
from mirabelle.channels.sizes import replace_tensors
from mirabelle.onnx_files.read import network as network_of
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.graph import example_of, rebuild
from mirabelle.quantization.simulation.notes import FLOAT_SIZES, float_sizes_of
from mirabelle.sparsity import masks

FORMAT = 1


def save(model: nn.Module, folder: str | Path) -> Path:
    """Writes `folder/model.safetensors` (weights and buffers, with their sizes) and
    `folder/model.json` (what else is needed to build it again).

    Of weights that `mb.sparsify` made sparse only those that are not zero are written
    (`base/compression_of_zeros.py`).
    The weights are written first, the JSON with their checksum last: an interrupted save leaves no
    folder that loads as something else.
    """
    folder = Path(folder)
    described = quantization(model)
    tensors, sparse = _compact(model)
    write_tensors(folder / "model.safetensors", tensors)
    content = {
        "format": FORMAT,
        "network": type(model).__name__ if described is None else "quantised",
        "quantization": None if described is None else described.to_dict(),
        "graph_form": getattr(model, "meta", {}).get(FORM),
        "float_sizes": None if described is None else float_sizes_of(model),
        "sparse": sparse,
        "sha256": sha256(folder / "model.safetensors"),
    }
    write_json(folder / "model.json", content)
    return folder


def load(folder: str | Path, model: nn.Module | str | Path) -> nn.Module:
    """The network saved in `folder`. model: the original, unpruned network, freshly built; it stays
    as it is and its weights do not matter. The path of the ONNX file where the network came from
    one.

    Raises `InputError` where the files are damaged or do not belong together, and where `model` is
    another network.
    """
    folder = Path(folder)
    described = _description(folder)
    # files from before there were sparse networks have none
    sparse = described.get("sparse") or {}
    tensors = _whole(read_tensors(folder / "model.safetensors")[0], sparse, folder)
    if isinstance(model, (str, Path)):
        if described["quantization"] is None:
            raise InputError(
                f"{folder} holds a float network; load it with the network that it was made "
                f"from, not with {model}"
            )
        model = network_of(model, example_of(described["quantization"]))
    result = _in_saved_form(model, described, tensors, folder)
    _fill(result, tensors, type(model).__name__, folder)
    masks.mark(result, {name: entry["block"] for name, entry in sparse.items()})
    return result.eval()


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
            f"{described.get('format') if isinstance(described, dict) else None!r}; this "
            f"version reads format {FORMAT}"
        )
    if not {"quantization", "float_sizes", "sha256"} <= described.keys():
        raise InputError(
            f"{folder / 'model.json'} lacks parts of its content; it was damaged or written by "
            "something else"
        )
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} holds no weights: there is no model.safetensors")
    if sha256(folder / "model.safetensors") != described["sha256"]:
        raise InputError(
            f"{folder / 'model.safetensors'} is not the file that model.json was written for; "
            "it was damaged or replaced"
        )
    return described


def _in_saved_form(
    model: nn.Module, described: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path
) -> nn.Module:
    """A copy of the original with the sizes, the graph form and the quantisation that were
    saved.
    """
    result = clone(model)
    form = described.get("graph_form")
    known = (
        form["sizes"]
        if form
        else described["float_sizes"] or {n: t.shape for n, t in tensors.items()}
    )
    _resize(result, {n: tuple(s) for n, s in known.items()})
    if form:
        result = rebuild_graph_form(result, form)
    if described["quantization"] is not None:
        try:
            result = rebuild(result, described["quantization"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{folder / 'model.json'} describes no quantisation ({type(error).__name__}: "
                f"{error}); it was damaged"
            ) from error
        result.meta |= {FLOAT_SIZES: described["float_sizes"], FORM: form}
    return result


def _fill(result: nn.Module, tensors: dict[str, torch.Tensor], name: str, folder: Path) -> None:
    """Puts the saved tensors into a network whose class is called `name`."""
    own = result.state_dict()
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
    tensors, sparse = model.state_dict(), {}
    for name, block in masks.blocks(model).items():
        sparse[name] = {"block": block, "shape": list(tensors[name].shape)}
        if parts := encode(tensors[name], block):
            del tensors[name]
            tensors |= {f"{name}/{part}": t for part, t in parts.items()}
    return tensors, sparse


def _whole(tensors: dict[str, torch.Tensor], sparse: Any, folder: Path) -> dict[str, torch.Tensor]:
    try:
        for name, entry in sparse.items():
            block, shape = entry["block"], entry["shape"]
            parts = {
                p: tensors.pop(f"{name}/{p}")
                for p in ("values", "gaps", "bits")
                if f"{name}/{p}" in tensors
            }
            if parts:
                tensors[name] = decode(parts, shape, block, f"{name} in {folder}")
            elif name not in tensors:
                raise KeyError(name)
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        ZeroDivisionError,
        RuntimeError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder / 'model.json'} describes no sparse weights ({type(error).__name__}: "
            f"{error}); it was damaged"
        ) from error
    return tensors


def _resize(model: nn.Module, sizes: dict[str, tuple[int, ...]]) -> None:
    own = dict(model.state_dict(keep_vars=True))
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
    new = {
        n: torch.zeros(s, dtype=own[n].dtype) for n, s in sizes.items() if tuple(own[n].shape) != s
    }
    replace_tensors(model, new)
