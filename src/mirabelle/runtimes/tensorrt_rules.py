"""The written rules of explicit quantization for TensorRT, checked on a Q/DQ file: `lint(path)`.
Needs onnx alone.

TensorRT's parser rejects some broken rules, and takes others for something else than was meant: an
unsigned byte for a signed one, a scale of one channel for another's. `parser` says which:
`rejects`, `accepts` (and computes something else, or slower than it could).
Sources: NVIDIA TensorRT documentation, Working with Quantized Types, Q/DQ Layer-Placement
Recommendations; and TensorRT-RTX 1.7.1's parser, tried with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.runtimes.tensorrt_graph import (
    MOVES,
    WEIGHTED,
    Graph,
    Violation,
    attribute,
    axis_of,
    name_of,
    weights_of,
)

# What TensorRT lets integers through: they commute with quantization, or it has a kernel for them.
INTEGER_READERS = (
    *WEIGHTED,
    "Add",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Flatten",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
)
FUSED = ("BatchNormalization", "Relu", "Clip", "LeakyRelu")


def zero_points(graph: Graph) -> Iterator[Violation]:
    """Zero points are zero: TensorRT's grids are symmetric."""
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and zero.any():
            yield Violation(
                "zero-point",
                name_of(node),
                f"its zero point is {zero.flat[np.flatnonzero(zero)[0]]}; it must be 0",
                "rejects",
            )


def positive_scales(graph: Graph) -> Iterator[Violation]:
    """Scales are positive and finite."""
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is not None and not (np.isfinite(scale) & (scale > 0)).all():
            yield Violation(
                "positive-scale",
                name_of(node),
                f"its scales are as small as {scale.min()}; they must be above 0",
                "rejects",
            )


def signed_bytes(graph: Graph) -> Iterator[Violation]:
    """Activations and weights are int8. uint8 is taken for int8, so that everything above 127 turns
    negative.
    """
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        stored = graph.constants.get(node.input[0])
        kind = (
            zero.dtype
            if zero is not None
            else np.dtype("uint8")
            if node.op_type == "QuantizeLinear"
            else stored.dtype
            if stored is not None
            else None
        )
        kind = (
            np.dtype("int8") if kind is not None and attribute(node, "output_dtype") == 3 else kind
        )
        if (
            kind is not None
            and kind not in (np.dtype("int8"), np.dtype("int32"))
            and kind.kind in "iu"
        ):
            parser = "accepts" if kind == np.uint8 else "rejects"
            yield Violation(
                "int8",
                name_of(node),
                f"it has {kind}"
                + ("" if zero is not None else ", as there is no zero point")
                + "; int8 is needed",
                parser,
            )


def float_biases(graph: Graph) -> Iterator[Violation]:
    """Biases stay in float."""
    for node in graph.of("DequantizeLinear"):
        stored = graph.constants.get(node.input[0])
        if stored is not None and stored.dtype == np.int32:
            yield Violation(
                "float-bias",
                name_of(node),
                "it holds a bias in int32; store the bias as float",
                "rejects",
            )


def tensor_scales(graph: Graph) -> Iterator[Violation]:
    """Activations have one scale. A vector of them is applied along a dimension nobody meant."""
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        constant = (
            graph.is_weight(node)
            if node.op_type == "DequantizeLinear"
            else node.input[0] in graph.constants
        )
        if scale is not None and scale.size > 1 and not constant:
            yield Violation(
                "per-tensor-activation",
                name_of(node),
                f"an activation has {scale.size} scales; it must have one",
                "accepts",
            )


def channel_axis(graph: Graph) -> Iterator[Violation]:
    """Scales of weights run along the output channels."""
    for layer, node, axis in weights_of(graph):
        scale = graph.constants.get(node.input[1])
        stored = graph.constants.get(node.input[0])
        rank = stored.ndim if stored is not None else None
        own = axis_of(node) + (rank or 0) if axis_of(node) < 0 else axis_of(node)
        if scale is not None and scale.size > 1 and own != axis:
            yield Violation(
                "channel-axis",
                name_of(node),
                f"the scales of {name_of(layer)}'s weight run along axis {own}; its output "
                f"channels are axis {axis}",
                "accepts",
            )


def channel_count(graph: Graph) -> Iterator[Violation]:
    """There is a scale for each output channel, or one for all."""
    for layer, node, axis in weights_of(graph):
        scale, stored = graph.constants.get(node.input[1]), graph.constants.get(node.input[0])
        if scale is not None and stored is not None and scale.size not in (1, stored.shape[axis]):
            yield Violation(
                "channel-count",
                name_of(node),
                f"{scale.size} scales for {stored.shape[axis]} output channels of {name_of(layer)}",
                "rejects",
            )


def symmetric_weights(graph: Graph) -> Iterator[Violation]:
    """Weights lie in [-127, 127]."""
    for layer, node, _ in weights_of(graph):
        stored = graph.constants.get(node.input[0])
        if stored is not None and stored.dtype == np.int8 and (stored == -128).any():
            yield Violation(
                "weight-range",
                name_of(node),
                f"{name_of(layer)}'s weight holds -128; it must lie in [-127, 127]",
                "accepts",
            )


def both_inputs(graph: Graph) -> Iterator[Violation]:
    """A layer runs in int8 when its activation and its weight are both quantized."""
    for layer in graph.of(*WEIGHTED):
        quantized = [graph.dequantized(name) is not None for name in layer.input[:2]]
        if any(quantized) and not all(quantized):
            missing = "activation" if not quantized[0] else "weight"
            yield Violation(
                "both-inputs",
                name_of(layer),
                f"its {missing} is not quantized, the other is; quantize both or none",
                "accepts",
            )


def paired(graph: Graph) -> Iterator[Violation]:
    """Each QuantizeLinear is followed by DequantizeLinear alone, with the same scale."""
    for node in graph.of("QuantizeLinear"):
        after = graph.readers.get(node.output[0], [])
        others = [r for r in after if r.op_type != "DequantizeLinear"]
        scales = [graph.constants.get(r.input[1]) for r in after if r.op_type == "DequantizeLinear"]
        own = graph.constants.get(node.input[1])
        unequal = own is not None and any(
            s is not None and not np.array_equal(s, own) for s in scales
        )
        if others or not scales or unequal:
            why = (
                f"{others[0].op_type} reads its integers"
                if others
                else "nothing dequantizes it"
                if not scales
                else "it is dequantized with another scale"
            )
            yield Violation(
                "pairs",
                name_of(node),
                f"{why}; a QuantizeLinear needs its DequantizeLinear",
                "accepts",
            )


def inputs_not_outputs(graph: Graph) -> Iterator[Violation]:
    """What a layer gives is quantized only where integers are read: else it is rounded for
    nothing.
    """
    for node in graph.of("QuantizeLinear"):
        maker = graph.maker(node.input[0])
        maker = (
            graph.maker(maker.input[0])
            if maker is not None and maker.op_type in ("Relu", "Clip")
            else maker
        )
        if maker is None or maker.op_type not in WEIGHTED:
            continue
        pairs = [
            d for d in graph.readers.get(node.output[0], []) if d.op_type == "DequantizeLinear"
        ]
        last = [r for d in pairs for r in graph.readers.get(d.output[0], [])]
        fused = any(r.op_type in FUSED for r in last)  # another rule's
        if pairs and not fused and not any(r.op_type in INTEGER_READERS for r in last):
            kinds = ", ".join(sorted({r.op_type for r in last})) or "the output"
            yield Violation(
                "inputs-not-outputs",
                name_of(node),
                f"it rounds what {name_of(maker)} gives, and only {kinds} reads that, in float",
                "accepts",
            )


def residual_sums(graph: Graph) -> Iterator[Violation]:
    """Of an addition's operands a layer's own result stays in float, so that the layer adds before
    it rounds, and the other one is quantized.
    """
    for node in graph.of("Add"):
        operands = [graph.maker(name) for name in node.input]
        if any(o is None for o in operands) or any(name in graph.constants for name in node.input):
            continue
        direct = [o.op_type in ("Conv", "ConvTranspose") and _runs_int8(graph, o) for o in operands]
        rounded = [o.op_type == "DequantizeLinear" and _layer_behind(graph, o) for o in operands]
        if all(direct):
            yield Violation(
                "residual-sum",
                name_of(node),
                "it adds two layers' results, neither of them quantized; quantize one",
                "accepts",
            )
        elif all(o.op_type == "DequantizeLinear" for o in operands) and any(rounded):
            yield Violation(
                "residual-sum",
                name_of(node),
                "both operands are quantized, one right after its layer; leave that one in float",
                "accepts",
            )


def _runs_int8(graph: Graph, layer: Any) -> bool:
    return all(graph.dequantized(name) is not None for name in layer.input[:2])


def _layer_behind(graph: Graph, dequantize: Any) -> bool:
    """Whether a DequantizeLinear holds the rounded result of a layer that nothing else reads."""
    quantize = graph.maker(dequantize.input[0], "QuantizeLinear")
    layer = graph.maker(quantize.input[0], "Conv") if quantize is not None else None
    return (
        layer is not None
        and len(graph.readers[dequantize.output[0]]) == 1
        and _runs_int8(graph, layer)
    )


def no_simulated_fusion(graph: Graph) -> Iterator[Violation]:
    """Nothing is quantized between a layer and its BatchNorm or ReLU: TensorRT fuses these
    itself.
    """
    for node in graph.of("QuantizeLinear"):
        maker = graph.maker(node.input[0])
        if maker is None or maker.op_type not in WEIGHTED:
            continue
        after = [
            r
            for d in graph.readers.get(node.output[0], [])
            for r in graph.readers.get(d.output[0], [])
        ]
        between = [r.op_type for r in after if r.op_type in FUSED]
        if between:
            yield Violation(
                "no-simulated-fusion",
                name_of(node),
                f"it stands between {name_of(maker)} and its {between[0]}; quantize after that",
                "accepts",
            )


def pooling_commutes(graph: Graph) -> Iterator[Violation]:
    """Moving data and taking the largest keeps the grid: after it the same scale stands as
    before.
    """
    for node in graph.of(*MOVES):
        before = graph.maker(node.input[0], "DequantizeLinear")
        if before is None:
            continue
        for quantize in [
            r for r in graph.readers.get(node.output[0], []) if r.op_type == "QuantizeLinear"
        ]:
            one, other = (graph.constants.get(n.input[1]) for n in (before, quantize))
            if one is not None and other is not None and not np.array_equal(one, other):
                yield Violation(
                    "pooling-commutes",
                    name_of(node),
                    "it stands between two grids; it must keep the one that it reads",
                    "accepts",
                )


RULES: dict[str, Callable[[Graph], Iterator[Violation]]] = {
    "zero-point": zero_points,
    "positive-scale": positive_scales,
    "int8": signed_bytes,
    "float-bias": float_biases,
    "per-tensor-activation": tensor_scales,
    "channel-axis": channel_axis,
    "channel-count": channel_count,
    "weight-range": symmetric_weights,
    "both-inputs": both_inputs,
    "pairs": paired,
    "inputs-not-outputs": inputs_not_outputs,
    "residual-sum": residual_sums,
    "no-simulated-fusion": no_simulated_fusion,
    "pooling-commutes": pooling_commutes,
}


def lint(path: str | Path) -> list[Violation]:
    """Every rule of `RULES` that an ONNX file in Q/DQ form breaks, in the order of the rules; a
    float file breaks none.
    """
    graph = Graph.read(path)
    return [v for rule in RULES.values() for v in rule(graph)]
