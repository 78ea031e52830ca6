"""A network as a file of a runtime, to be timed there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mirabelle.checks import clone
from mirabelle.data import Batch
from mirabelle.graph.capture import program
from mirabelle.onnxfile import onnx_proto, write_onnx
from mirabelle.runtimes import RUNTIMES, Artifact


def write_artifact(
    network: nn.Module, inputs: Batch, folder: Path, runtime: str = "onnxruntime", threads: int = 1, sites: Sequence[str] = ()
) -> Artifact:
    """The network as a file of `runtime` in `folder`, for one sample: to be timed there. Where it is made from an ONNX file, that is `folder/model.onnx`.

    A quantised network is in the form that the runtime's files are made from; sites: the names of its quantised values.
    """
    adapter, one = RUNTIMES[runtime], inputs.head(1)
    if adapter.convert is not None:
        return Artifact(adapter.convert(program(clone(network).eval(), one), sites, folder / f"model{adapter.suffix}"), runtime, threads)
    assert adapter.save is not None
    source = folder / "model.onnx"
    write_onnx(onnx_proto(network, one), source)
    return Artifact(adapter.save(source, folder / runtime), runtime, threads)
