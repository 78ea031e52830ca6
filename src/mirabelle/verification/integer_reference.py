"""The integer reference: a quantized network run by `integers/arithmetic.py`, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, choose
from mirabelle.base.tensors import from_array
from mirabelle.graph.capture import get_tensor, inputs_in_order, operator, parameter_name
from mirabelle.graph.layers import Conv, Linear, layer_of
from mirabelle.graph.nodes import argument, called, module, optional_argument, setting, target_name
from mirabelle.graph.plain import written_parts
from mirabelle.integers import arithmetic, pair_sums
from mirabelle.quantization.forms.qdq import bias_integers
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.operators import (
    PASSES,
    RECTIFIERS,
    float_name,
    is_addition,
    over_space,
    rectifier_bounds,
    unpadded,
)
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from mirabelle.verification.accumulators import Accumulated, Grid, Parts, Quantized, Sum

Values = dict[fx.Node, Any]
REQUANTizATIONS = {"float32": False, "fixed": True}


class IntegerReference:
    """Runs a quantized network with integers. `floats` names the operators that ran in float for
    want of an integer form.

    requantization: `float32`, a factor for each channel as CPU runtimes have it, or `fixed`, a
    fixed-point multiplier and a shift.
    pairs: None for exact sums, or a name of `pair_sums.KERNELS`: sums of pairs are clipped to 16
    bits, as these do without VNNI.
    """

    def __init__(
        self, model: fx.GraphModule, requantization: str = "float32", pairs: str | None = None
    ):
        if quantization(model) is None:
            raise InputError(
                "the integer reference needs a quantized network; call mb.quantize first"
            )
        self.model = model
        self.fixed = choose(requantization, REQUANTizATIONS, "requantization")
        self.pairs = (
            pairs if pairs is None else choose(pairs, pair_sums.KERNELS, "kernels with pairs")
        )
        self.floats: list[str] = []
        self.clipped: dict[str, int] = {}

    def run(
        self,
        batch: Batch,
        given: Mapping[str, np.ndarray] | None = None,
        unrounded: Collection[str] = (),
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The integers of every site by its name, and the network's output, float32.

        given: integers of sites that later layers read instead of the reference's own, which are
        still what is returned: every layer is then computed from what another machine had before
        it. unrounded: sites that are not rounded on the way to the layers that read them. `clipped`
        counts, for each layer with pairs that left 16 bits, the outputs that this changed.
        """
        given = given or {}
        values: dict[fx.Node, Any] = {}
        sites: dict[str, np.ndarray] = {}
        inputs = iter(inputs_in_order(self.model.graph, batch))
        result: Any = None
        self.floats, self.clipped = [], {}
        written = written_parts(self.model.graph)
        last_use = {
            source: node for node in self.model.graph.nodes for source in node.all_input_nodes
        }
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs).detach().cpu().numpy()
            elif node.op == "get_attr":
                values[node] = get_tensor(self.model, str(node.target)).detach()
            elif node.op == "output":
                flat = pytree.tree_leaves(node.args)
                result = np.asarray(_float(values[flat[0]]))
            else:
                value = self._run(node, values)
                if isinstance(value, Quantized):
                    made = argument(node, 0) if node.op == "call_module" else node
                    name = made.name
                    sites[name] = value.q
                    if name in unrounded and node.op == "call_module":
                        value = values[made]
                    elif name in given:
                        value = replace(value, q=given[name].astype(np.int32))
                values[node] = _float(value) if node in written else value
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    values.pop(source, None)
        return sites, result

    def _run(self, node: fx.Node, values: Values) -> Any:
        if node.op == "call_module":
            value = values[argument(node, 0)]
            if (quantizer := called(self.model, node, WeightQuantizer)) is not None:
                return quantizer(value).detach()
            grid = module(self.model, target_name(node), ActivationQuantizer)
            return self._to_grid(value, grid)
        if (found := self._in_integers(node, values)) is not None:
            return found
        if named := float_name(node):
            self.floats.append(named)
        return self._in_torch(node, values)

    def _in_integers(self, node: fx.Node, values: Values) -> Any:
        """What an operator gives for integers; None where it has no integer form."""
        if is_addition(node):
            a: Any = values.get(argument(node, 0))
            b: Any = values.get(argument(node, 1))
            kinds = {type(a), type(b)}
            both = Quantized in kinds and kinds <= {Quantized, Accumulated}
            return Sum(a, b) if both else None
        if operator(node) == "cat":
            given = [values.get(p) for p in setting(node, "tensors")]
            parts = tuple(p for p in given if isinstance(p, Quantized))
            return Parts(parts, setting(node, "dim")) if len(parts) == len(given) else None
        x = values.get(source) if (source := optional_argument(node, 0)) is not None else None
        if isinstance(x, (Accumulated, Sum)) and operator(node) in RECTIFIERS:
            return _rectified(x, rectifier_bounds(node))
        return self._of_quantized(node, x, values) if isinstance(x, Quantized) else None

    def _of_quantized(self, node: fx.Node, x: Quantized, values: Values) -> Any:
        name, source = operator(node), argument(node, 0)
        if name in ("conv1d", "conv2d", "linear") and _has_integers(node):
            return self._contract(node, x, values)
        if name == "max_pool2d":
            if setting(node, "ceil_mode"):  # float32 holds these integers exactly
                found = self._in_torch(node, {**values, source: x.q.astype(np.float32)})
                return replace(x, q=found.astype(np.int32))
            kernel, stride, padding = _window(node)
            dilation = _pair(setting(node, "dilation"))
            return replace(
                x, q=arithmetic.max_pool2d(x.q, kernel, stride, padding, dilation, x.grid.low)
            )
        if name in ("adaptive_avg_pool2d", "mean") and over_space(node):
            total = arithmetic.global_average(x.centered)
            return Accumulated(
                total.reshape(total.shape[: node.meta["val"].ndim]),
                np.float32(x.grid.scale / (x.q.shape[2] * x.q.shape[3])),
            )
        if name == "avg_pool2d" and _divides_evenly(node):
            kernel, stride, padding = _window(node)
            return Accumulated(
                arithmetic.sum_pool2d(x.centered, kernel, stride, padding),
                np.float32(x.grid.scale / math.prod(kernel)),
            )
        if name in PASSES or unpadded(node) is not None:
            centered = torch.from_numpy(np.ascontiguousarray(x.centered))
            moved = self._in_torch(node, {**values, source: centered})
            return replace(x, q=np.asarray(moved) + x.grid.zero_point)
        return None

    def _to_grid(self, value: Any, quantizer: ActivationQuantizer) -> Quantized:
        grid = Grid(
            float(quantizer.scale.detach()), quantizer.zero_point, quantizer.low, quantizer.high
        )
        if isinstance(value, Quantized):
            if value.grid == grid:
                return value
            value = Accumulated(value.centered, np.float32(value.grid.scale))
        if isinstance(value, (Accumulated, Sum, Parts)):
            return Quantized(value.to(grid, self.fixed), grid)
        return Quantized(
            arithmetic.quantize(
                np.asarray(_float(value)), grid.scale, grid.zero_point, grid.low, grid.high
            ),
            grid,
        )

    def _contract(self, node: fx.Node, x: Quantized, values: Values) -> Accumulated:
        layer = layer_of(node)
        assert layer is not None
        quantizer = module(self.model, target_name(layer.weight), WeightQuantizer)
        weight = quantizer.centered(values[layer.weight]).numpy()
        scales = quantizer.scale.detach() * x.grid.scale
        bits = 64 if quantizer.bits > 8 or x.grid.high - x.grid.low > 255 else 32
        bias = None
        if layer.bias is not None:
            bias = bias_integers(values[layer.bias], scales).numpy()
        if isinstance(layer, Linear):
            q = arithmetic.linear(x.centered, weight, bias, bits)
            return Accumulated(
                self._clip(node, q, x, x.q - x.grid.low, weight.T, weight.shape[1]), scales.numpy()
            )
        q = self._convolve(layer, x, weight, bias, bits)
        return Accumulated(q, scales.numpy().reshape(1, -1, *[1] * (x.q.ndim - 2)))

    def _convolve(
        self, layer: Conv, x: Quantized, weight: np.ndarray, bias: np.ndarray | None, bits: int
    ) -> np.ndarray:
        centered, flat = x.centered, layer.dimensions == 1
        if flat:  # a convolution over images of height 1
            centered, weight = centered[:, :, None], weight[:, :, None]
        stride, dilation = _pair(layer.stride, flat, 1), _pair(layer.dilation, flat, 1)
        padding = _pair([before for before, _ in layer.padding], flat, 0)
        if any(before != behind for before, behind in layer.padding):
            zeros = ((0, 0), *layer.padding) if flat else layer.padding
            centered, padding = np.pad(centered, ((0, 0), (0, 0), *zeros)), (0, 0)
        groups = layer.groups
        q = arithmetic.conv2d(centered, weight, bias, stride, padding, dilation, groups, bits)
        if self.pairs and weight.shape[1] > 1:
            zero, kernel = x.grid.zero_point - x.grid.low, (weight.shape[2], weight.shape[3])
            seen = arithmetic.patches(centered + zero, kernel, stride, padding, dilation, zero)
            q = self._clip_groups(layer.node, q, x, seen, weight, groups)
        return q[:, :, 0] if flat else q

    def _clip(
        self,
        node: fx.Node,
        accumulators: np.ndarray,
        x: Quantized,
        rows: np.ndarray,
        columns: np.ndarray,
        channels: int,
    ) -> np.ndarray:
        """Accumulators (..., O) as kernels with pairs have them. rows: (..., K) unsigned bytes,
        place by place with `channels` at each.
        """
        if self.pairs is None or (x.grid.low < 0 and not self.pairs.signed):
            return accumulators
        rows, columns = (
            pair_sums.paired(rows.reshape(-1, rows.shape[-1]), channels, self.pairs.layout, 1),
            pair_sums.paired(columns, channels, self.pairs.layout, 0),
        )
        lost = pair_sums.excess(rows, columns)
        if changed := int((lost != 0).sum()):
            self.clipped[node.name] = self.clipped.get(node.name, 0) + changed
        return arithmetic.checked(accumulators + lost.reshape(accumulators.shape))

    def _clip_groups(
        self,
        node: fx.Node,
        accumulators: np.ndarray,
        x: Quantized,
        seen: np.ndarray,
        weight: np.ndarray,
        groups: int,
    ) -> np.ndarray:
        """The same for a convolution: accumulators (N, O, H, W), seen: of `arithmetic.patches`."""
        outputs, inputs = weight.shape[:2]
        each = outputs // groups
        parts = []
        for g, columns in enumerate(arithmetic.filters(weight, groups)):
            rows = seen[..., g * inputs : (g + 1) * inputs].reshape(*seen.shape[:3], -1)
            parts.append(
                self._clip(
                    node,
                    accumulators[:, g * each : (g + 1) * each].transpose(0, 2, 3, 1),
                    x,
                    rows,
                    columns,
                    inputs,
                )
            )
        return np.concatenate(parts, 3).transpose(0, 3, 1, 2)

    def _in_torch(self, node: fx.Node, values: dict) -> Any:
        def plain(n: fx.Node) -> Any:
            return pytree.tree_map(
                # of the same memory, which the operator may write into
                lambda v: from_array(v) if isinstance(v, np.ndarray) else v,
                _float(values[n]),
            )

        target: Any = node.target
        args: Any = fx.map_arg(node.args, plain)
        kwargs: Any = fx.map_arg(node.kwargs, plain)
        with torch.no_grad():
            result = target(*args, **kwargs)
        return pytree.tree_map(lambda r: r.numpy() if isinstance(r, torch.Tensor) else r, result)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, (Quantized, Accumulated, Sum, Parts)) else value


def _rectified(x: Accumulated | Sum, bounds: tuple[float, float]) -> Accumulated | Sum | None:
    """A value that is clipped on the way to its grid; None where a rectifier gives negatives."""
    if bounds[0] != 0:
        return None
    if isinstance(x, Accumulated):
        return replace(x, q=arithmetic.relu(x.q), bounds=bounds)
    return replace(x, bounds=bounds)


def _has_integers(node: fx.Node) -> bool:
    """Whether a layer's weight is quantized and its bias, if any, is a parameter."""
    bias = optional_argument(node, 2)
    return argument(node, 1).op == "call_module" and (
        bias is None or parameter_name(bias) is not None
    )


def _pair(value: Any, flat: bool = False, first: int = 0) -> tuple[int, int]:
    """Both dimensions of a setting given once or for each; for `flat` the first one is `first`."""
    values = [value] * 2 if isinstance(value, int) else list(value)
    return (first if flat else values[0], values[-1])


def _window(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding of a pooling."""
    kernel = _pair(setting(node, "kernel_size"))
    stride = setting(node, "stride")
    return kernel, _pair(stride) if stride else kernel, _pair(setting(node, "padding"))


def _divides_evenly(node: fx.Node) -> bool:
    """Whether all windows of an average divide by the same number, that of their places."""
    return (
        not setting(node, "ceil_mode")
        and setting(node, "divisor_override") is None
        and (not any(_pair(setting(node, "padding"))) or setting(node, "count_include_pad"))
    )
