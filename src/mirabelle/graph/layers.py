"""The layers of a captured graph by what they are, with ATen's defaults filled in: so that nobody
else counts places in raw arguments.

`as_conv`, `as_linear`, `as_norm` and `as_attention` give None for any other node; `layer_of` gives
whichever of a convolution and a linear layer it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from mirabelle.graph.capture import operator, parameter_name
from mirabelle.graph.nodes import argument, has_setting, setting, value_of

# By the operator: the dimensions that it works on, and whether it is transposed.
_CONVOLUTIONS = {
    "conv1d": (1, False),
    "conv2d": (2, False),
    "conv3d": (3, False),
    "conv_transpose1d": (1, True),
    "conv_transpose2d": (2, True),
    "conv_transpose3d": (3, True),
}
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}


@dataclass(frozen=True)
class Conv:
    """A convolution. Settings have one entry for each of its `dimensions`.

    weight, bias: the nodes that it reads them from, which are quantizers in a quantized network.
    padding: zeros before and behind; `same` puts the odd one behind, as torch does.
    A transposed one has its weight as (inputs, outputs / groups, ...).
    """

    node: fx.Node
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        return len(self.stride)

    def channel_dim(self) -> int:
        """The dimension of what it gives, a batch, along which its channels run."""
        return 1


@dataclass(frozen=True)
class Linear:
    """A linear layer. weight: (outputs, inputs). bias: None where there is none."""

    node: fx.Node
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    groups: int = 1

    def channel_dim(self) -> int:
        """The dimension of what it gives along which its channels run: the last."""
        return value_of(self.node).ndim - 1


@dataclass(frozen=True)
class Norm:
    """A normalization. kind: its operator, of `NORMS`. weight, bias: scale and shift, None where
    there are none. mean, variance: running ones, of those that keep them.

    last: how many of the last dimensions it normalizes over, for those that name them; else 0.
    eps: None where ATen takes that of the type, as `rms_norm` may.
    """

    node: fx.Node
    kind: str
    input: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    mean: fx.Node | None
    variance: fx.Node | None
    eps: float | None
    last: int


@dataclass(frozen=True)
class Attention:
    """`scaled_dot_product_attention`. mask: None where there is none. scale: None for 1 over the
    square root of the width.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    causal: bool
    scale: float | None


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """A setting that is given once for all dimensions, or for each."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * (count // len(values)))


def _node(node: fx.Node, name: str) -> fx.Node | None:
    found = setting(node, name) if has_setting(node, name) else None
    return found if isinstance(found, fx.Node) else None


def as_conv(node: fx.Node) -> Conv | None:
    """The convolution that a node is, transposed or not; None for any other node."""
    if operator(node) not in _CONVOLUTIONS:
        return None
    count, transposed = _CONVOLUTIONS[operator(node)]
    weight = argument(node, 1)
    dilation = _each(setting(node, "dilation"), count)
    given = setting(node, "padding")
    if given == "same":
        kernel = value_of(weight).shape[2:]
        total = [(int(k) - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in total)
    else:
        padding = tuple((p, p) for p in _each(0 if given == "valid" else given, count))
    return Conv(
        node,
        argument(node, 0),
        weight,
        _node(node, "bias"),
        _each(setting(node, "stride"), count),
        padding,
        dilation,
        setting(node, "groups"),
        transposed,
        _each(setting(node, "output_padding") if transposed else 0, count),
    )


def as_linear(node: fx.Node) -> Linear | None:
    """The linear layer that a node is; None for any other node."""
    if operator(node) != "linear":
        return None
    return Linear(node, argument(node, 0), argument(node, 1), _node(node, "bias"))


def layer_of(node: fx.Node) -> Conv | Linear | None:
    """The convolution or linear layer that a node is; None for any other node."""
    return as_linear(node) or as_conv(node)


def as_norm(node: fx.Node) -> Norm | None:
    """The normalization that a node is; None for any other node."""
    kind = operator(node)
    if kind not in NORMS:
        return None
    return Norm(
        node,
        kind,
        argument(node, 0),
        _node(node, "weight"),
        _node(node, "bias"),
        _node(node, "running_mean"),
        _node(node, "running_var"),
        setting(node, "eps"),
        len(setting(node, "normalized_shape")) if has_setting(node, "normalized_shape") else 0,
    )


def as_attention(node: fx.Node) -> Attention | None:
    """The attention that a node is; None for any other node."""
    if operator(node) != "scaled_dot_product_attention":
        return None
    return Attention(
        node,
        argument(node, 0),
        argument(node, 1),
        argument(node, 2),
        _node(node, "attn_mask"),
        bool(setting(node, "is_causal")),
        setting(node, "scale"),
    )


def is_normed_alone(node: fx.Node, uses: Mapping[str, int]) -> bool:
    """Whether the BatchNorm that reads a layer can be taken together with it: its weight and bias
    are its own, its result goes nowhere else, and its channels are dimension 1, as BatchNorm's are.
    uses: `parameter_uses`. False for transposed convolutions, whose outputs are not dimension 0.
    """
    layer = layer_of(node)
    if layer is None or len(node.users) > 1:
        return False
    if isinstance(layer, Conv) and layer.transposed:
        return False
    if isinstance(layer, Linear) and layer.channel_dim() != 1:
        return False
    own = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(uses.get(parameter_name(n) or "", 2) == 1 for n in own)
