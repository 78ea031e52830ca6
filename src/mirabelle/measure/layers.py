"""Which layer of a network a runtime's node is: runtimes fuse nodes and name what they made after one of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from mirabelle.runtimes.artifact import Artifact, LayerTime

CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What a runtime may fuse behind a layer of weights.
FOLLOWERS = ("Relu", "Clip", "Add", "BatchNormalization", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Mul")


@lru_cache(maxsize=16)
def _onnx_names(path: Path, changed: float) -> dict[str, str]:
    """Every name of a node or of its output -> the name of the layer that it belongs to: the contraction that it follows, or the node itself."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    makers = {o: n for n in graph.node for o in n.output}

    def own(node: Any) -> str:
        return node.name or node.output[0]

    def layer(node: Any) -> str:
        start = node
        while node.op_type in FOLLOWERS:
            before = [makers[i] for i in node.input if i in makers and makers[i].op_type in (*FOLLOWERS, *CONTRACTIONS)]
            if not before:
                break
            node = before[0]
        return own(node if node.op_type in CONTRACTIONS else start)

    found: dict[str, str] = {}
    for node in graph.node:
        name = layer(node)
        for alias in (*node.output, node.name):
            if alias:
                found[alias] = name
    return found


def layer_names(artifact: Artifact) -> dict[str, str]:
    """For ONNX files, every name in the file -> its layer's; {} for files that runtimes report on by the names of layers."""
    return _onnx_names(artifact.path, artifact.path.stat().st_mtime) if artifact.path.suffix == ".onnx" else {}


def attribute(times: Iterable[LayerTime], names: dict[str, str]) -> list[tuple[str, LayerTime]]:
    """Each executed node with the layer that it is: `layer1.0.conv1` for `layer1.0.conv1/Conv_token_4`; a node that belongs to none keeps its own name."""
    found = []
    for time in times:
        name = time.name
        for end in range(len(name), 0, -1):  # the longest beginning that the file knows: runtimes append to names
            if name[:end] in names:
                name = names[name[:end]]
                break
        base, slash, operator = name.partition("/")
        if slash and operator.partition("/")[0].partition("_")[0] in CONTRACTIONS:
            name = base
        found.append((name, time))
    return found
