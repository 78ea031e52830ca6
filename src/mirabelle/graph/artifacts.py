"""A network as a file of a runtime, to be timed there, and the timing of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import fx, nn

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch
from mirabelle.graph.capture import program
from mirabelle.measurement.latency import Latency, alternate
from mirabelle.onnx_files.source import source_of
from mirabelle.onnx_files.write import fold_pads, onnx_proto, save_onnx, write_onnx
from mirabelle.onnx_files.write_back import written
from mirabelle.runtimes import RUNTIMES, Artifact

ROUNDS = 400


def write_artifact(
    network: nn.Module,
    inputs: Batch,
    folder: Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    sites: Sequence[str] = (),
) -> Artifact:
    """The network as a file of `runtime` in `folder`, for one sample: to be timed there. Where it
    is made from an ONNX file, that is `folder/model.onnx`.

    A quantized network is in the form that the runtime's files are made from; sites: the names of
    its quantized values.
    """
    adapter, one = RUNTIMES[runtime], inputs.head(1)
    if adapter.convert is not None:
        return Artifact(
            adapter.convert(
                program(clone(network).eval(), one), sites, folder / f"model{adapter.suffix}"
            ),
            runtime,
            threads,
        )
    assert adapter.save is not None
    source = folder / "model.onnx"
    if isinstance(network, fx.GraphModule) and source_of(network) is not None:
        proto = written(network)
        fold_pads(proto)
        save_onnx(proto, source)
    else:
        write_onnx(onnx_proto(network, one), source)
    return Artifact(adapter.save(source, folder / runtime), runtime, threads)


def one_sample(inputs: Batch) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The first sample of `inputs` as a file takes it: by place, and by name."""
    one = inputs.head(1)
    return [t.numpy() for t in one.args], {k: v.numpy() for k, v in one.kwargs.items()}


def time_in_turn(
    files: Mapping[str, Artifact], inputs: Batch, seconds: float
) -> dict[str, Latency]:
    """The latency of one call of each file with one sample, for at most `seconds` in all; files of
    one thread share a core.
    """
    arrays, named = one_sample(inputs)

    calls = {name: lambda file=file: file(*arrays, **named) for name, file in files.items()}
    return alternate(
        calls, ROUNDS, seconds=seconds, pin=all(file.threads == 1 for file in files.values())
    )
