"""The integer reference: a quantized network run by `integers/arithmetic.py`, layer by layer."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is
# depends on the operator. pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false pyright:
# reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false,
# reportOperatorIssue=false, reportGeneralTypeIssues=false pyright: reportOptionalIterable=false,
# reportAssignmentType=false

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, choose
from mirabelle.graph.capture import get_tensor, inputs_in_order, operator, parameter_name
from mirabelle.integers import arithmetic, pair_sums
from mirabelle.quantization.forms.qdq import bias_integers
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.placement import (
    PASSES,
    RECTIFIERS,
    float_name,
    is_addition,
    over_space,
    rectifier_bounds,
    unpadded,
)
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer

Bounds = tuple[float, float]
FREE: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class Grid:
    scale: float
    zero_point: int
    low: int
    high: int

    def within(self, bounds: Bounds) -> tuple[int, int]:
        """The integers that a rectifier with these bounds leaves: rounding and clipping are
        monotone, so that either may come first.
        """
        low, high = (
            float(
                np.clip(
                    np.rint(np.float32(b) / np.float32(self.scale)) + self.zero_point,
                    self.low,
                    self.high,
                )
            )
            for b in bounds
        )
        return int(low), int(high)


@dataclass(frozen=True)
class Quantized:
    """Integers on a grid."""

    q: np.ndarray
    grid: Grid

    @property
    def centred(self) -> np.ndarray:
        return self.q - self.grid.zero_point

    def float(self) -> np.ndarray:
        return arithmetic.dequantize(self.q, self.grid.scale, self.grid.zero_point)


@dataclass(frozen=True)
class Accumulated:
    """int32 accumulators in units of `scale` (broadcast over them), and the rectifier that they are
    clipped by on the way to their grid.
    """

    q: np.ndarray
    scale: np.ndarray
    bounds: Bounds = FREE

    def float(self) -> np.ndarray:
        return np.clip(arithmetic.dequantize(self.q, self.scale), *np.float32(self.bounds))

    def to(self, grid: Grid, fixed: bool) -> np.ndarray:
        low, high = grid.within(self.bounds)
        if not fixed:
            return arithmetic.requantize(
                self.q,
                np.asarray(self.scale, np.float32) / np.float32(grid.scale),
                grid.zero_point,
                low,
                high,
            )
        multiplier, shift = arithmetic.fixed_point(np.asarray(self.scale, np.float64) / grid.scale)
        return arithmetic.requantize_fixed(self.q, multiplier, shift, grid.zero_point, low, high)


@dataclass(frozen=True)
class Sum:
    """Two tensors of integers that are added when the grid of the result is known: both on grids,
    or one still in accumulators, which a convolution adds to the other before it rounds.
    """

    a: Quantized | Accumulated
    b: Quantized | Accumulated
    bounds: Bounds = FREE

    def float(self) -> np.ndarray:
        return np.clip(self.a.float() + self.b.float(), *np.float32(self.bounds))

    def to(self, grid: Grid, fixed: bool) -> np.ndarray:
        a, b, limits = self.a, self.b, grid.within(self.bounds)
        if not (isinstance(a, Quantized) and isinstance(b, Quantized)):
            if fixed:
                parts = [
                    (v.centred, v.grid.scale) if isinstance(v, Quantized) else (v.q, v.scale)
                    for v in (a, b)
                ]
                return arithmetic.sum_fixed(parts, grid.scale, grid.zero_point, *limits)
            return np.clip(
                arithmetic.quantize(self.float(), grid.scale, grid.zero_point, grid.low, grid.high),
                *limits,
            )
        if fixed:
            return arithmetic.add_fixed(
                a.centred,
                a.grid.scale,
                b.centred,
                b.grid.scale,
                grid.scale,
                grid.zero_point,
                *limits,
            )
        return arithmetic.add(
            a.q,
            a.grid.scale,
            a.grid.zero_point,
            b.q,
            b.grid.scale,
            b.grid.zero_point,
            grid.scale,
            grid.zero_point,
            *limits,
        )


@dataclass(frozen=True)
class Parts:
    """Tensors of integers that are put behind one another when the grid of the result is known."""

    parts: tuple[Quantized, ...]
    axis: int

    def float(self) -> np.ndarray:
        return np.concatenate([p.float() for p in self.parts], self.axis)

    def to(self, grid: Grid, fixed: bool) -> np.ndarray:
        pairs = [(p.centred, p.grid.scale) for p in self.parts]
        return arithmetic.concatenate(
            pairs, self.axis, grid.scale, grid.zero_point, grid.low, grid.high, fixed
        )


REQUANTISATIONS = {"float32": False, "fixed": True}


class Reference:
    """Runs a quantised network with integers. `floats` names the operators that ran in float for
    want of an integer form.

    requantisation: `float32`, a factor for each channel as CPU runtimes have it, or `fixed`, a
    fixed-point multiplier and a shift.
    pairs: None for exact sums, or a name of `pair_sums.KERNELS`: sums of pairs are clipped to 16
    bits, as these do without VNNI.
    """

    def __init__(
        self, model: fx.GraphModule, requantisation: str = "float32", pairs: str | None = None
    ):
        if quantization(model) is None:
            raise InputError(
                "the integer reference needs a quantised network; call mb.quantize first"
            )
        self.model = model
        self.fixed = choose(requantisation, REQUANTISATIONS, "requantisation")
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
        last_use = {
            source: node for node in self.model.graph.nodes for source in node.all_input_nodes
        }
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs).detach().cpu().numpy()
            elif node.op == "get_attr":
                values[node] = get_tensor(self.model, str(node.target)).detach()
            elif node.op == "output":
                flat = torch.utils._pytree.tree_leaves(node.args)
                result = np.asarray(_float(values[flat[0]]))
            else:
                value = self._run(node, values)
                if isinstance(value, Quantized):
                    name = node.args[0].name if node.op == "call_module" else node.name
                    sites[name] = value.q
                    if name in unrounded and node.op == "call_module":
                        value = values[node.args[0]]
                    elif name in given:
                        value = replace(value, q=given[name].astype(np.int32))
                values[node] = value
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    values.pop(source, None)
        return sites, result

    def _run(self, node: fx.Node, values: dict) -> Any:
        if node.op == "call_module":
            quantizer = self.model.get_submodule(str(node.target))
            value = values[node.args[0]]
            return (
                quantizer(value).detach()
                if isinstance(quantizer, WeightQuantizer)
                else self._to_grid(value, quantizer)
            )
        name = operator(node)
        x = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if (
            name in ("conv1d", "conv2d", "linear")
            and isinstance(x, Quantized)
            and _has_integers(node)
        ):
            return self._contract(node, name, x, values)
        if name in RECTIFIERS and isinstance(x, (Accumulated, Sum)):
            low, high = rectifier_bounds(node)
            if low == 0:
                return (
                    replace(x, q=arithmetic.relu(x.q), bounds=(low, high))
                    if isinstance(x, Accumulated)
                    else replace(x, bounds=(low, high))
                )
        if is_addition(node):
            kinds = [type(values.get(a)) for a in node.args[:2]]
            if Quantized in kinds and set(kinds) <= {Quantized, Accumulated}:
                return Sum(*(values[a] for a in node.args[:2]))
        if name == "cat" and all(isinstance(values.get(p), Quantized) for p in node.args[0]):
            return Parts(
                tuple(values[p] for p in node.args[0]), node.args[1] if len(node.args) > 1 else 0
            )
        if name == "max_pool2d" and isinstance(x, Quantized):
            kernel, stride, padding, dilation, ceil = _window(node)
            if ceil:  # float32 holds these integers exactly
                return replace(
                    x,
                    q=self._in_torch(node, {**values, node.args[0]: x.q.astype(np.float32)}).astype(
                        np.int32
                    ),
                )
            return replace(
                x, q=arithmetic.max_pool2d(x.q, kernel, stride, padding, dilation, x.grid.low)
            )
        if (
            name in ("adaptive_avg_pool2d", "mean")
            and isinstance(x, Quantized)
            and over_space(node)
        ):
            total = arithmetic.global_average(x.centred)
            return Accumulated(
                total.reshape(total.shape[: node.meta["val"].ndim]),
                np.float32(x.grid.scale / (x.q.shape[2] * x.q.shape[3])),
            )
        if (
            name == "avg_pool2d"
            and isinstance(x, Quantized)
            and (window := _averaging(node)) is not None
        ):
            return Accumulated(
                arithmetic.sum_pool2d(x.centred, *window),
                np.float32(x.grid.scale / math.prod(window[0])),
            )
        if isinstance(x, Quantized) and (name in PASSES or unpadded(node) is not None):
            moved = self._in_torch(
                node, {**values, node.args[0]: torch.from_numpy(np.ascontiguousarray(x.centred))}
            )
            return replace(x, q=np.asarray(moved) + x.grid.zero_point)
        if named := float_name(node):
            self.floats.append(named)
        return self._in_torch(node, values)

    def _to_grid(self, value: Any, quantizer: Any) -> Quantized:
        assert isinstance(quantizer, ActivationQuantizer)
        grid = Grid(
            float(quantizer.scale.detach()), quantizer.zero_point, quantizer.low, quantizer.high
        )
        if isinstance(value, Quantized):
            if value.grid == grid:
                return value
            value = Accumulated(value.centred, np.float32(value.grid.scale))
        if isinstance(value, (Accumulated, Sum, Parts)):
            return Quantized(value.to(grid, self.fixed), grid)
        return Quantized(
            arithmetic.quantize(
                np.asarray(_float(value)), grid.scale, grid.zero_point, grid.low, grid.high
            ),
            grid,
        )

    def _contract(self, node: fx.Node, name: str, x: Quantized, values: dict) -> Accumulated:
        quantizer = self.model.get_submodule(str(node.args[1].target))  # type: ignore[union-attr]
        assert isinstance(quantizer, WeightQuantizer)
        weight = quantizer.centred(values[node.args[1]]).numpy()
        scales = quantizer.scale.detach() * x.grid.scale
        bits = 64 if quantizer.bits > 8 or x.grid.high - x.grid.low > 255 else 32
        bias = None
        if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
            bias = bias_integers(values[node.args[2]], scales).numpy()
        if name == "linear":
            q = arithmetic.linear(x.centred, weight, bias, bits)
            return Accumulated(
                self._clip(node, q, x, x.q - x.grid.low, weight.T, weight.shape[1]), scales.numpy()
            )
        centred, flat = x.centred, name == "conv1d"
        if flat:  # a convolution over images of height 1
            centred, weight = centred[:, :, None], weight[:, :, None]
        stride, padding, dilation = (
            node.args[i] if len(node.args) > i else d for i, d in ((3, 1), (4, 0), (5, 1))
        )
        stride, dilation = _pair(stride, flat, 1), _pair(dilation, flat, 1)
        if isinstance(padding, str):
            total = [
                (k - 1) * d if padding == "same" else 0
                for k, d in zip(weight.shape[2:], dilation, strict=True)
            ]
            centred = np.pad(centred, ((0, 0), (0, 0), *((t // 2, t - t // 2) for t in total)))
            padding = 0
        groups, padding = node.args[6] if len(node.args) > 6 else 1, _pair(padding, flat, 0)
        q = arithmetic.conv2d(centred, weight, bias, stride, padding, dilation, groups, bits)
        if self.pairs and weight.shape[1] > 1:
            zero = x.grid.zero_point - x.grid.low
            seen = arithmetic.patches(
                centred + zero, weight.shape[2:], stride, padding, dilation, zero
            )
            q = self._clip_groups(node, q, x, seen, weight, groups)
        return Accumulated(
            q[:, :, 0] if flat else q, scales.numpy().reshape(1, -1, *[1] * (x.q.ndim - 2))
        )

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
            return torch.utils._pytree.tree_map(
                lambda v: (
                    torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v
                ),
                _float(values[n]),
            )

        args = fx.map_arg(node.args, plain)
        kwargs = fx.map_arg(node.kwargs, plain)
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        return torch.utils._pytree.tree_map(
            lambda r: r.numpy() if isinstance(r, torch.Tensor) else r, result
        )


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, (Quantized, Accumulated, Sum, Parts)) else value


def _has_integers(node: fx.Node) -> bool:
    """Whether a layer's weight is quantised and its bias, if any, is a parameter."""
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    return (
        isinstance(weight, fx.Node)
        and weight.op == "call_module"
        and (bias is None or parameter_name(bias) is not None)
    )


def _pair(value: Any, flat: bool = False, first: int = 0) -> tuple[int, int]:
    """Both dimensions of a setting given once or for each; for `flat` the first one is `first`."""
    values = [value] * 2 if isinstance(value, int) else list(value)
    return (first if flat else values[0], values[-1])


def _window(node: fx.Node) -> tuple:
    kernel = _pair(node.args[1])
    stride = _pair(node.args[2]) if len(node.args) > 2 and node.args[2] else kernel
    padding = _pair(node.args[3] if len(node.args) > 3 else 0)
    return (
        kernel,
        stride,
        padding,
        _pair(node.args[4] if len(node.args) > 4 else 1),
        len(node.args) > 5 and bool(node.args[5]),
    )


def _averaging(node: fx.Node) -> tuple | None:
    """Kernel, stride and padding of an average whose windows all divide by the same number; None
    for any other.
    """
    settings = [*node.args[1:], *[None] * 7][:7]
    kernel, stride, padding, ceil, counts_padding, divisor = settings[:6]
    if (
        ceil
        or divisor is not None
        or (padding not in (None, 0, [0, 0]) and counts_padding is False)
    ):
        return None
    kernel = _pair(kernel)
    return kernel, _pair(stride) if stride else kernel, _pair(padding or 0)
