"""A network as an ONNX file."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import CaptureError, first_line
from mirabelle.base.files import atomic
from mirabelle.base.quiet import muffled, uncollected
from mirabelle.base.tracing import DataAsDetached
from mirabelle.onnx_files.qdq import META, translations, write_integers
from mirabelle.onnx_files.source import Source

OPSET = 20
KEYS = ("key", "idx", "name")  # of torch's paths into dicts, sequences and dataclasses
# where torch's exporter notes the modules that a node was called in
SCOPES = "pkg.torch.onnx.name_scopes"


class _FourDimensions(TorchFunctionMode):
    """torch.onnx writes attention over (batch, heads, tokens, size) alone: windows and other
    leading dimensions go into the batch, and come back.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func
            not in (
                F.scaled_dot_product_attention,
                torch.ops.aten.scaled_dot_product_attention.default,
            )
            or len(args) < 3
            or args[0].ndim == 4
        ):
            return func(*args, **kwargs)
        (query, key, value), rest = args[:3], list(args[3:])
        leading = query.shape[:-2]

        def folded(t: torch.Tensor) -> torch.Tensor:
            t = t[None] if leading and t.ndim == 2 else t
            t = t.expand(*leading[:-1], *t.shape[-3:])  # the heads of keys and values may be fewer
            return t.flatten(0, -4) if t.ndim > 4 else t[(None,) * (4 - t.ndim)]

        if rest and rest[0] is not None:
            rest[0] = folded(rest[0])
        if kwargs.get("attn_mask") is not None:
            kwargs = {**kwargs, "attn_mask": folded(kwargs["attn_mask"])}
        found = func(folded(query), folded(key), folded(value), *rest, **kwargs)
        return found.reshape(*leading, *found.shape[-2:])


def onnx_proto(network: nn.Module, inputs: Batch) -> Any:
    """The network as torch's exporter writes it, with a free batch where the network allows that,
    and with the integers that it is to hold (`onnx_files/qdq.py`).

    Raises `CaptureError` with torch's reason.
    """

    for name, module in network.named_modules():
        if (
            isinstance(module, nn.LSTM) and module.proj_size
        ):  # torch.onnx writes a file that no runtime takes
            raise CaptureError(
                f"{name or 'the network'} is an LSTM with proj_size={module.proj_size}, which "
                "ONNX lacks; use an nn.Linear after a plain LSTM"
            )
    with muffled():
        # Attention whose mask is trained has other strides than in the graph that is written.
        network = clone(network).eval().requires_grad_(False)
    integers = getattr(network, "meta", {}).get(META)
    problem: Exception | None = None
    for batch, free in ((inputs.at_least_two(), True), (inputs, False)):
        shapes: Any = None
        if free:
            dims = {0: torch.export.Dim.DYNAMIC}
            shapes = (
                tuple(dims for _ in batch.args)
                if not batch.kwargs
                else {k: dims for k in batch.kwargs}
            )
        with muffled(), uncollected(), DataAsDetached(), _FourDimensions():
            try:
                program = torch.onnx.export(
                    network,
                    batch.args,
                    kwargs=batch.kwargs,
                    dynamo=True,
                    verbose=False,
                    opset_version=OPSET,
                    input_names=inputs.names,
                    output_names=["output"],
                    dynamic_shapes=shapes,
                    optimize=integers is None,
                    custom_translation_table=translations() if integers else None,
                )
                assert program is not None
                if integers is not None:
                    write_integers(program.model, integers)
                    program.optimize()
                _register_constants(program.model)
                return program.model_proto
            except Exception as error:
                problem = error
    cause: BaseException | None = problem
    while (
        cause is not None and cause.__cause__ is not None
    ):  # the outer ones say only in which step it was
        cause = cause.__cause__
    raise CaptureError(
        f"torch.onnx cannot export this network: {type(cause).__name__}: {first_line(cause)}"
    ) from problem


def _register_constants(model: Any) -> None:
    """The constants of all rewritten nodes: onnxscript names those of two that read the same value
    alike (two clips, say), and keeps the last of a name only.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if (
                value is not None
                and value.const_value is not None
                and value.producer() is None
                and not value.is_initializer()
            ):
                while value.name in model.graph.initializers:
                    value.name += "_"
                model.graph.register_initializer(value)


def write_onnx(
    proto: Any, path: str | Path, outputs: Sequence[str] = (), names: Source | None = None
) -> None:
    """Means as the pools that runtimes have kernels for, without doc strings and metadata (source
    paths among them), checked, whole or not at all. outputs: their names, one for each. names: a
    file whose names of inputs and outputs and whose metadata it gets.
    """
    _pool_for_means(proto)
    fold_pads(proto)
    _turn_weights(proto)
    _own_zero_points(proto)
    _name_nodes(proto)
    _strip(proto)
    if names is not None:
        inputs, outputs = names.inputs, [v.name for v in names.proto.graph.output]
        proto.metadata_props.extend(names.proto.metadata_props)
    else:
        inputs = [v.name for v in proto.graph.input]
    _rename(proto, inputs, outputs)
    save_onnx(proto, path)


def output_names(given: Any, inputs: Sequence[str]) -> list[str]:
    """What a file calls the tensors that a network gives: by the keys of its dict or the fields of
    its dataclass, `boxes_0` inside them; else `output`, or `output0`, `output1`, ...
    """
    found = pytree.tree_flatten_with_path(given)[0]
    paths = [path for path, leaf in found if isinstance(leaf, torch.Tensor)]
    names: list[str] = []
    for path in paths:
        keys = [str(next(getattr(k, a) for a in KEYS if hasattr(k, a))) for k in path]
        if not path or isinstance(path[0], pytree.SequenceKey):
            keys[:1] = ["output" + "".join(keys[:1] if len(paths) > 1 else ())]
        name = "_".join(keys)
        while name in {*inputs, *names}:
            name += "_"
        names.append(name)
    return names


def _rename(proto: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives inputs and outputs these names, and others to the values that had them."""
    graph = proto.graph
    new = dict(zip((v.name for v in graph.input), inputs))
    if len(outputs) == len(graph.output):
        new |= dict(zip((v.name for v in graph.output), outputs))
    taken = {n for node in graph.node for n in (*node.input, *node.output)} - new.keys()
    for name in taken & set(new.values()):
        other = f"{name}_"
        while other in {*taken, *new.values()}:
            other += "_"
        new[name] = other
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [new.get(n, n) for n in values]


def save_onnx(proto: Any, path: str | Path) -> None:
    """Checked, whole or not at all."""
    import onnx

    onnx.checker.check_model(proto)
    with atomic(path) as temporary:
        onnx.save(proto, str(temporary))


def _own_zero_points(proto: Any) -> None:
    """Weights have zero points apart from those whose channels lie in another dimension: OpenVINO
    does not fold zeros away that such weights share, and runs their layers in float.
    """
    constants = {i.name: i for i in proto.graph.initializer}
    shared: dict[str, dict[tuple[int, int], str]] = {}
    for node in proto.graph.node:
        if (
            node.op_type != "DequantizeLinear"
            or len(node.input) < 3
            or node.input[0] not in constants
            or node.input[2] not in constants
        ):
            continue
        name, rank = node.input[2], len(constants[node.input[0]].dims)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(1, rank)
        names = shared.setdefault(name, {(rank, axis): name})
        if (rank, axis) not in names:
            own = proto.graph.initializer.add()
            own.CopyFrom(constants[name])
            own.name = names[rank, axis] = f"{name}_along_{axis}_of_{rank}"
        node.input[2] = names[rank, axis]


def _pool_for_means(proto: Any) -> None:
    """A mean over the two last dimensions of images is a global average pool, for which runtimes
    have integer kernels; torch writes ReduceMean.
    """
    import numpy as np
    from onnx import numpy_helper

    constants = {i.name: i for i in proto.graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in proto.graph.value_info}
    for node in proto.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = np.sort(numpy_helper.to_array(constants[node.input[1]]))
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if keep == 1 and ranks.get(node.output[0]) == 4 and axes.tolist() in ([-2, -1], [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


def fold_pads(proto: Any) -> None:
    """Paddings of images with zeros go into the convolutions that alone read them: runtimes have no
    integer kernel for a padding by itself.
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    constants = {i.name: i for i in graph.initializer}
    taken: set[str] = set()
    for node in list(graph.node):
        if (
            node.op_type != "Pad"
            or len(node.input) > 3
            or node.input[1] not in constants
            or node.output[0] in {o.name for o in graph.output}
        ):
            continue
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        value = node.input[2] if len(node.input) > 2 else ""
        zero = not value or (
            value in constants and not numpy_helper.to_array(constants[value]).any()
        )
        around = numpy_helper.to_array(constants[node.input[1]]).tolist()
        readers = [n for n in graph.node if node.output[0] in n.input]
        plain = all(
            n.op_type == "Conv"
            and n.input[0] == node.output[0]
            and not any(a.name == "auto_pad" and a.s != b"NOTSET" for a in n.attribute)
            for n in readers
        )
        half = len(around) // 2
        if (
            mode != b"constant"
            or not zero
            or not plain
            or not readers
            or any(around[:2] + around[half : half + 2])
            or min(around) < 0
        ):
            continue
        for reader in readers:
            reader.input[0] = node.input[0]
            own = next((a for a in reader.attribute if a.name == "pads"), None)
            spatial = around[2:half] + around[half + 2 :]
            before = list(own.ints) if own is not None else [0] * len(spatial)
            if own is not None:
                reader.attribute.remove(own)
            reader.attribute.append(
                helper.make_attribute("pads", [a + b for a, b in zip(before, spatial, strict=True)])
            )
        taken.add(node.output[0])
    kept = [n for n in graph.node if not taken & set(n.output)]
    del graph.node[:]
    graph.node.extend(kept)


def _turn_weights(proto: Any) -> None:
    """A stored matrix that is dequantized, turned and multiplied with is stored turned: runtimes
    look for integers right in front of the product.
    """
    from onnx import numpy_helper

    graph = proto.graph
    constants = {i.name: i for i in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    turned: set[str] = set()
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Transpose" else None
        if (
            before is None
            or before.op_type != "DequantizeLinear"
            or before.input[0] not in constants
        ):
            continue
        readers = [
            n for n in graph.node if node.output[0] in n.input or before.output[0] in n.input
        ]
        if [list(a.ints) for a in node.attribute] != [[1, 0]] or any(
            n.op_type != "MatMul" and n is not node for n in readers
        ):
            continue
        stored = constants[before.input[0]]
        stored.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(stored).T.copy(), stored.name)
        )
        for attribute in before.attribute:
            if attribute.name == "axis":
                attribute.i = 1 - attribute.i
        for reader in readers:
            for k, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[k] = before.output[0]
        turned.add(node.output[0])
    kept = [n for n in graph.node if not turned & set(n.output)]
    del graph.node[:]
    graph.node.extend(kept)


def _name_nodes(proto: Any) -> None:
    """Nodes get the paths of the modules that they come from, `layer1.0.conv1/Conv`: runtimes
    report by these names, and the files of a network in float and in integers can be laid side by
    side. A convolution that took in its BatchNorm is called after its own weight.
    """
    taken: set[str] = set()
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scopes = next((e.value for e in node.metadata_props if e.key == SCOPES), "[]")
        path = ast.literal_eval(scopes)[-2:-1]
        weight = node.input[1] if len(node.input) > 1 else ""
        owner = (
            weight.removesuffix(".weight")
            if weight.endswith(".weight")
            else path[0]
            if path
            else ""
        )
        name = base = f"{owner}/{node.op_type}" if owner else node.op_type
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name


def _strip(proto: Any) -> None:
    used = {name for n in proto.graph.node for name in n.input}
    for holder in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        *proto.graph.initializer,
    ):
        holder.doc_string = ""
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
    for i in reversed(range(len(proto.graph.initializer))):
        if proto.graph.initializer[i].name not in used:
            del proto.graph.initializer[i]
    proto.producer_name, proto.producer_version = "mirabelle", ""
