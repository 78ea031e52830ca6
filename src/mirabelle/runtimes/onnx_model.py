"""ONNX files are read here and nowhere else: whole or not at all, and never through to files
outside of their own folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mirabelle.base.errors import InputError
from mirabelle.runtimes.artifact import check_present, require, unreadable


def read_model(path: str | Path, weights: bool = True) -> Any:
    """The `ModelProto` of an ONNX file. weights: with its external data, which is checked in any
    case.

    Raises `InputError` where the file is missing or damaged, and where it names data that is not in
    its folder: a stranger's file could name any other, and a copy would carry that away.
    """
    onnx, path = require("onnx", "onnxruntime"), Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there")
    try:
        model = onnx.load(path, load_external_data=False)
        _check_texts(model)
    except Exception as error:  # of protobuf, or of the file system
        raise unreadable(path, "onnx", error) from error
    if data_files(model, path) and weights:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise unreadable(path, "onnx", error) from error
    return model


def _check_texts(message: Any) -> None:
    """`ValueError` for a name that is no text: protobuf gives its bytes without a word."""
    if hasattr(message, "raw_data"):  # of a tensor not all fields: its numbers would be copied
        pairs = [*message.external_data, *getattr(message, "metadata_props", ())]
        texts = [message.name, message.doc_string, *(t for p in pairs for t in (p.key, p.value))]
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a tensor's name, or what it says of its data, is {text!r}")
        return
    for field, value in message.ListFields():
        parts = value if hasattr(value, "append") or hasattr(value, "add") else [value]
        if field.message_type is not None:
            for part in parts:
                _check_texts(part)
        elif field.type == field.TYPE_STRING and not all(isinstance(p, str) for p in parts):
            raise ValueError(f"{field.name} is no text: {parts[0]!r}")


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators in a file; 0 where it says none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def data_files(model: Any, path: Path) -> list[Path]:
    """The files of external data that an ONNX file at `path` names. `InputError` where one of them
    is not in its folder or below, by name or by a link, or is shorter than what is read of it.
    """
    found: dict[Path, None] = {}
    for tensor in tensors(model):
        entries = {e.key: e.value for e in tensor.external_data}
        if "location" not in entries:
            continue
        name = entries["location"]
        parts = PurePosixPath(name.replace("\\", "/")).parts
        outside = not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in name
        file = path.parent / name
        if outside or path.parent.resolve() not in file.resolve().parents:
            raise InputError(
                f"{path} keeps weights in {name!r}, outside of its own folder; save it again with "
                "the data beside it"
            )
        check_present([path, file])
        start, length = entries.get("offset", "0"), entries.get("length", "0")
        if not re.fullmatch(r"\d{1,18}", start) or not re.fullmatch(r"\d{1,18}", length):
            raise InputError(f"{path} names no place in {name!r}: {start!r}, {length!r}")
        if int(start) + int(length) > file.stat().st_size:
            raise InputError(f"{file} is shorter than {path.name} says; it was damaged or replaced")
        found[file] = None
    return list(found)


def tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a file: constants, those of attributes and of the graphs inside nodes."""
    graphs = [
        model.graph,
        *(t for i in model.training_info for t in (i.initialization, i.algorithm)),
    ]
    nodes = [n for f in model.functions for n in f.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        attributes = [a for n in nodes for a in n.attribute]
        graphs, nodes = [], []
        for attribute in attributes:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
