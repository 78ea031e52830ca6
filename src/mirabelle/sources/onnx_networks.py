"""Networks that are ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from mirabelle.base.data import Batch
from mirabelle.onnx_files.read import network
from mirabelle.onnx_files.source import source_of


def onnx_network(path: str | Path, example: Batch, fold: bool = False) -> nn.Module:
    """The network of an ONNX file, node by node; `export` writes that file with its weights. What
    of the file runs outside torch is said in a warning.

    fold: constants are folded and batch norms merged first, as quantization likes it, which names
    such nodes itself. Raises `InputError` where the file cannot be read, or does not run on the
    example.
    """
    found = network(path, example._replace(target=None), fold)
    source = source_of(found)
    assert source is not None
    if source.outside and not fold:
        first = [f"{name} ({why})" for name, why in list(source.outside.items())[:4]]
        more = len(source.outside) - len(first)
        warnings.warn(
            f"{len(source.outside)} of {len(source.proto.graph.node)} nodes of the ONNX file run "
            f"outside torch: {'; '.join(first)}{f'; and {more} more' if more else ''}. Gradients "
            "stop there, and the channels that these nodes touch stay",
            stacklevel=4,
        )
    return found
