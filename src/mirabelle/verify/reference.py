"""The integer reference: a quantised network executed by `intmath`, layer by layer."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is depends on the operator.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportOptionalIterable=false, reportAssignmentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from mirabelle import intmath
from mirabelle.data import Batch
from mirabelle.errors import InputError
from mirabelle.graph.capture import get_tensor, operator, parameter_name
from mirabelle.quantize.description import quantization
from mirabelle.quantize.fake import ActivationQuantizer, WeightQuantizer
from mirabelle.quantize.network import inputs_in_order
from mirabelle.quantize.place import PASSES, RECTIFIERS, is_addition, over_space, rectifier_bounds
from mirabelle.quantize.qdq import bias_integers


@dataclass(frozen=True)
class Grid:
    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class Quantized:
    """Integers on a grid."""

    q: np.ndarray
    grid: Grid

    @property
    def centred(self) -> np.ndarray:
        return self.q - self.grid.zero_point

    def float(self) -> np.ndarray:
        return intmath.dequantize(self.q, self.grid.scale, self.grid.zero_point)


@dataclass(frozen=True)
class Accumulated:
    """int32 accumulators in units of `scale` (broadcast over them)."""

    q: np.ndarray
    scale: np.ndarray

    def float(self) -> np.ndarray:
        return intmath.dequantize(self.q, self.scale)


class Reference:
    """Runs a quantised network with integers. `floats` names the operators that ran in float for want of an integer form."""

    def __init__(self, model: fx.GraphModule):
        if quantization(model) is None:
            raise InputError("the integer reference needs a quantised network; call mb.quantize first")
        self.model = model
        self.floats: list[str] = []

    def run(self, batch: Batch) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The integers of every site by its name, and the network's output, float32."""
        values: dict[fx.Node, Any] = {}
        sites: dict[str, np.ndarray] = {}
        inputs = iter(inputs_in_order(self.model.graph, batch))
        result: Any = None
        self.floats = []
        last_use = {source: node for node in self.model.graph.nodes for source in node.all_input_nodes}
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs).detach().cpu().numpy()
            elif node.op == "get_attr":
                values[node] = get_tensor(self.model, str(node.target)).detach()
            elif node.op == "output":
                result = self._result(node, values)
            else:
                values[node] = self._run(node, values)
                if isinstance(values[node], Quantized):
                    sites[node.args[0].name if node.op == "call_module" else node.name] = values[node].q
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    values.pop(source, None)
        return sites, result

    def _result(self, node: fx.Node, values: dict) -> np.ndarray:
        flat = torch.utils._pytree.tree_leaves(node.args)
        return np.asarray(_float(values[flat[0]]))

    def _run(self, node: fx.Node, values: dict) -> Any:
        if node.op == "call_module":
            quantizer = self.model.get_submodule(str(node.target))
            value = values[node.args[0]]
            return quantizer(value).detach() if isinstance(quantizer, WeightQuantizer) else _to_grid(value, quantizer)
        name = operator(node)
        x = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if name in ("conv1d", "conv2d", "linear") and isinstance(x, Quantized) and _has_integers(node):
            return self._contract(node, name, x, values)
        if name in RECTIFIERS and isinstance(x, Accumulated):
            low, high = rectifier_bounds(node)
            return Accumulated(intmath.relu(x.q), x.scale) if (low, high) == (0.0, np.inf) else np.clip(x.float(), low, high)
        if is_addition(node) and isinstance(x, Quantized) and isinstance(other := values.get(node.args[1]), Quantized):
            return intmath.add(x.centred, x.grid.scale, other.centred, other.grid.scale)
        if name == "max_pool2d" and isinstance(x, Quantized):
            kernel, stride, padding, dilation, ceil = _window(node)
            if ceil:  # float32 holds these integers exactly
                return Quantized(self._in_torch(node, {**values, node.args[0]: x.q.astype(np.float32)}).astype(np.int32), x.grid)
            return Quantized(intmath.max_pool2d(x.q, kernel, stride, padding, dilation, x.grid.low), x.grid)
        if name in ("adaptive_avg_pool2d", "mean") and isinstance(x, Quantized) and over_space(node):
            total = intmath.global_average(x.centred)
            return Accumulated(total.reshape(total.shape[: node.meta["val"].ndim]), np.float32(x.grid.scale / (x.q.shape[2] * x.q.shape[3])))
        if name in PASSES and isinstance(x, Quantized):
            moved = self._in_torch(node, {**values, node.args[0]: torch.from_numpy(np.ascontiguousarray(x.q))})
            return Quantized(np.asarray(moved), x.grid)
        if name and isinstance(node.meta.get("val"), torch.Tensor) and not (name in RECTIFIERS and operator(node.args[0]) in ("add", "add_")):
            self.floats.append(name.rstrip("_"))
        return self._in_torch(node, values)

    def _contract(self, node: fx.Node, name: str, x: Quantized, values: dict) -> Accumulated:
        quantizer = self.model.get_submodule(str(node.args[1].target))  # type: ignore[union-attr]
        assert isinstance(quantizer, WeightQuantizer)
        weight = quantizer.centred(values[node.args[1]]).numpy()
        scales = quantizer.scale.detach() * x.grid.scale
        bias = None
        if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
            bias = bias_integers(values[node.args[2]], scales).numpy()
        bits = 64 if quantizer.bits > 8 or x.grid.high - x.grid.low > 255 else 32
        if name == "linear":
            return Accumulated(intmath.linear(x.centred, weight, bias, bits), scales.numpy())
        centred, flat = x.centred, name == "conv1d"
        if flat:  # a convolution over images of height 1
            centred, weight = centred[:, :, None], weight[:, :, None]
        stride, padding, dilation = (node.args[i] if len(node.args) > i else d for i, d in ((3, 1), (4, 0), (5, 1)))
        stride, dilation = _pair(stride, flat, 1), _pair(dilation, flat, 1)
        if isinstance(padding, str):
            total = [(k - 1) * d if padding == "same" else 0 for k, d in zip(weight.shape[2:], dilation, strict=True)]
            centred = np.pad(centred, ((0, 0), (0, 0), *((t // 2, t - t // 2) for t in total)))
            padding = 0
        groups = node.args[6] if len(node.args) > 6 else 1
        q = intmath.conv2d(centred, weight, bias, stride, _pair(padding, flat, 0), dilation, groups, bits)
        return Accumulated(q[:, :, 0] if flat else q, scales.numpy().reshape(1, -1, *[1] * (x.q.ndim - 2)))

    def _in_torch(self, node: fx.Node, values: dict) -> Any:
        def plain(n: fx.Node) -> Any:
            value = _float(values[n])
            return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value

        args = fx.map_arg(node.args, plain)
        kwargs = fx.map_arg(node.kwargs, plain)
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        return result.numpy() if isinstance(result, torch.Tensor) else result


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, (Quantized, Accumulated)) else value


def _to_grid(value: Any, quantizer: Any) -> Quantized:
    assert isinstance(quantizer, ActivationQuantizer)
    grid = Grid(float(quantizer.scale.detach()), quantizer.zero_point, quantizer.low, quantizer.high)
    if isinstance(value, Quantized) and value.grid == grid:
        return value
    if isinstance(value, Accumulated):
        factor = np.asarray(value.scale, np.float32) / np.float32(grid.scale)
        return Quantized(intmath.requantize(value.q, factor, grid.zero_point, grid.low, grid.high), grid)
    return Quantized(intmath.quantize(np.asarray(_float(value)), grid.scale, grid.zero_point, grid.low, grid.high), grid)


def _has_integers(node: fx.Node) -> bool:
    """Whether a layer's weight is quantised and its bias, if any, is a parameter."""
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    return isinstance(weight, fx.Node) and weight.op == "call_module" and (bias is None or parameter_name(bias) is not None)


def _pair(value: Any, flat: bool = False, first: int = 0) -> tuple[int, int]:
    """Both dimensions of a setting given once or for each; for `flat` the first one is `first`."""
    values = [value] * 2 if isinstance(value, int) else list(value)
    return (first if flat else values[0], values[-1])


def _window(node: fx.Node) -> tuple:
    kernel = _pair(node.args[1])
    stride = _pair(node.args[2]) if len(node.args) > 2 and node.args[2] else kernel
    padding = _pair(node.args[3] if len(node.args) > 3 else 0)
    return kernel, stride, padding, _pair(node.args[4] if len(node.args) > 4 else 1), len(node.args) > 5 and bool(node.args[5])
