"""Q/DQ form for networks that came from ONNX files: the file itself, with quantize and dequantize
nodes put in and weights as integers.

Everything else stays as it was: open dimensions, names, operators that nobody knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import fx

from mirabelle.base.errors import InputError
from mirabelle.graph.capture import get_tensor, module_path, parameter_name
from mirabelle.graph.nodes import argument, called, optional_argument, target_name
from mirabelle.onnx_files.qdq import Stored
from mirabelle.onnx_files.source import Source, source_of
from mirabelle.onnx_files.write_back import WriteBack, check_opset, inner_names, put_tensors
from mirabelle.quantization.forms.qdq import (
    check_exportable,
    is_contraction_of_quantized,
    stored_bias,
    stored_weight,
)
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer
from mirabelle.quantization.targets import TARGETS


class _Splicer:
    def __init__(self, model: fx.GraphModule, source: Source):
        self.model, self.source = model, source
        back = WriteBack(source)
        put_tensors(back, model, self.quantized())
        self.proto = back.proto
        self.nodes: list[NodeProto] = list(self.proto.graph.node)
        self.outputs = {o.name for o in self.proto.graph.output}
        self.before: dict[
            int, list[NodeProto]
        ] = {}  # nodes to put in front of the one with this index
        self.after: dict[int, list[NodeProto]] = {}
        self.written: set[str] = set()

    def quantized(self) -> set[str]:
        """The weights and biases that become integers, which the file holds in another form."""
        layers = [n for n in self.model.graph.nodes if is_contraction_of_quantized(n, self.model)]
        found = {target_name(argument(argument(n, 1), 0)) for n in layers}
        return found | {
            name
            for n in layers
            if (name := parameter_name(optional_argument(n, 2)))
            and stored_bias(self.model, n) is not None
        }

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.written:
            self.proto.graph.initializer.append(
                numpy_helper.from_array(np.asarray(value, order="C"), name)
            )
            self.written.add(name)
        return name

    def index(self, node: fx.Node) -> int | None:
        """The file's node that a node of the graph was made from."""
        return self.source.modules.get(module_path(node)) if node.op == "call_function" else None

    def values(self) -> dict[str, tuple[str, int]]:
        """The value in the file that a node's result is, by its name, and the index of the file's
        node that makes it: -1 for inputs.
        """
        found: dict[str, tuple[str, int]] = {}
        inputs = iter(self.source.inputs)
        last: dict[int, fx.Node] = {}
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                found[node.name] = (next(inputs), -1)
            elif (i := self.index(node)) is not None and len(self.nodes[i].output) == 1:
                last[i] = node
        return found | {node.name: (self.nodes[i].output[0], i) for i, node in last.items()}

    def drop_folded(self) -> None:
        """Batch norms that the convolution before them has taken in: who read them reads the
        convolution.
        """
        alive = {i for n in self.model.graph.nodes if (i := self.index(n)) is not None}
        for i, node in enumerate(self.nodes):
            if node.op_type == "BatchNormalization" and i not in alive:
                self.read_instead(node.output[0], node.input[0])
                if node.output[0] in self.outputs:
                    node.CopyFrom(
                        helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)
                    )
                else:
                    node.op_type = ""  # taken out when the file is put together

    def read_instead(self, old: str, new: str) -> None:
        for node in self.nodes:
            for k, name in enumerate(node.input):
                if name == old:
                    node.input[k] = new

    def activation(
        self,
        call: fx.Node,
        quantizer: ActivationQuantizer,
        values: dict[str, tuple[str, int]],
        dtype: str,
    ) -> str:
        site = argument(call, 0).name
        if site not in values:
            raise InputError(
                f"{site} lies inside a node of the ONNX file and cannot be quantized there; "
                "keep the layer that reads it in float"
            )
        value, place = values[site]
        scale = self.constant(f"{site}_scale", np.asarray(quantizer.scale.detach(), np.float32))
        zero = self.constant(f"{site}_zero_point", np.array(quantizer.zero_point, dtype))
        result = f"{site}_dequantized"
        if value in self.outputs:  # the output keeps its name
            own, result = f"{value}_float", value
            self.nodes[place].output[0] = own
            self.read_instead(value, result)
            value = own
        else:
            self.read_instead(value, result)
        self.after.setdefault(place, []).extend(
            [
                helper.make_node(
                    "QuantizeLinear",
                    [value, scale, zero],
                    [f"{site}_quantized"],
                    f"{site}/QuantizeLinear",
                ),
                helper.make_node(
                    "DequantizeLinear",
                    [f"{site}_quantized", scale, zero],
                    [result],
                    f"{site}/DequantizeLinear",
                ),
            ]
        )
        return site

    def layer(self, node: fx.Node, biases: bool) -> None:
        """Weight and bias of a layer as integers behind DequantizeLinear."""
        i = self.index(node)
        assert i is not None
        weight = argument(argument(node, 1), 0)
        readers = self.source.readers[target_name(weight)]
        turned = next(r.turned for r in readers if r.node == i)
        self.nodes[i].input[1] = self.dequantized(
            i, weight.name, stored_weight(self.model, node), turned
        )
        bias_name = parameter_name(optional_argument(node, 2))
        if biases and (bias := stored_bias(self.model, node)) is not None:
            self.reads_bias(i, self.dequantized(i, f"{node.name}_bias", bias))
        elif bias_name is not None and bias_name not in self.source.constants:
            self.reads_bias(
                i,
                self.constant(
                    f"{node.name}_bias", get_tensor(self.model, bias_name).detach().numpy()
                ),
            )

    def reads_bias(self, place: int, name: str) -> None:
        node = self.nodes[place]
        if len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)

    def dequantized(self, place: int, owner: str, tensor: Stored, turned: bool = False) -> str:
        """A stored tensor of integers and its DequantizeLinear, in front of the node that reads it;
        written once for all of a tensor's readers.
        """
        result = f"{owner}_dequantized"
        if result not in self.written:
            self.written.add(result)
            scales, zeros = tensor.grid
            names = [
                self.constant(
                    f"{owner}_quantized", tensor.integers.T if turned else tensor.integers
                ),
                self.constant(f"{owner}_scale", scales),
                self.constant(f"{owner}_zero_point", zeros),
            ]
            axes: dict[str, Any] = {"axis": int(turned)} if scales.ndim else {}
            self.before.setdefault(place, []).append(
                helper.make_node(
                    "DequantizeLinear", names, [result], f"{owner}/DequantizeLinear", **axes
                )
            )
        return result

    def assemble(self) -> ModelProto:
        graph = self.proto.graph
        ordered = list(self.after.get(-1, []))
        for i, node in enumerate(self.nodes):
            if node.op_type:
                ordered += [*self.before.get(i, []), node, *self.after.get(i, [])]
        copies = [NodeProto() for _ in ordered]
        for copy, node in zip(copies, ordered, strict=True):
            copy.CopyFrom(node)
        del graph.node[:]
        graph.node.extend(copies)
        del graph.value_info[:]
        used = _read(graph)
        kept = [t for t in graph.initializer if t.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self.proto


def _read(graph: Any) -> set[str]:
    """All names that nodes read, those inside of nodes too, and the outputs."""
    found = {o.name for o in graph.output}
    for node in graph.node:
        found |= set(node.input)
        found |= inner_names(node)
    return found


def spliced(model: fx.GraphModule) -> tuple[ModelProto, list[str]]:
    """The ONNX file that a quantized network was read from, in Q/DQ form, and the names of its
    sites in order; values are named as in `to_onnx`.

    Raises `InputError` where the grids are not those of files.
    """
    described = check_exportable(model)
    source = source_of(model)
    assert source is not None
    check_opset(source, 13, "scales per channel")
    splicer = _Splicer(model, source)
    splicer.drop_folded()
    values, sites = splicer.values(), []
    for node in model.graph.nodes:
        if (quantizer := called(model, node, ActivationQuantizer)) is not None:
            sites.append(
                splicer.activation(node, quantizer, values, TARGETS[described.target].activations)
            )
    for node in model.graph.nodes:
        if is_contraction_of_quantized(node, model):
            splicer.layer(node, TARGETS[described.target].biases)
    return splicer.assemble(), sites
