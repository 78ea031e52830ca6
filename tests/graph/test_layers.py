"""The typed view of layers: what it fills in, read off torch's own documentation."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from mirabelle.base.data import Batch
from mirabelle.graph import nodes
from mirabelle.graph.capture import capture, operator
from mirabelle.graph.layers import Conv, Linear, as_attention, as_conv, as_linear, as_norm, layer_of


def only(model: nn.Module, *shape: int) -> fx.Node:
    """The one operator of a network of one layer."""
    graph = capture(model, Batch((torch.zeros(shape),), {}, None)).graph
    return next(n for n in graph.nodes if operator(n))


def conv(model: nn.Module, *shape: int) -> Conv:
    found = as_conv(only(model, *shape))
    assert found is not None
    return found


def test_defaults_that_are_left_out() -> None:
    found = conv(nn.Conv2d(3, 4, 3), 1, 3, 8, 8)
    assert len(found.node.args) == 3  # torch.export leaves out what is the default
    assert found.stride == (1, 1)
    assert found.padding == ((0, 0), (0, 0))
    assert found.dilation == (1, 1)
    assert found.output_padding == (0, 0)
    assert (found.groups, found.transposed, found.dimensions) == (1, False, 2)
    assert nodes.target_name(found.weight) == "weight"
    assert found.bias is not None and nodes.target_name(found.bias) == "bias"
    assert found.input.op == "placeholder"
    assert found.channel_dim() == 1


def test_settings_of_each_dimension() -> None:
    layer = nn.Conv2d(4, 4, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2)
    found = conv(layer, 1, 4, 8, 8)
    assert found.stride == (2, 1)
    assert found.padding == ((1, 1), (0, 0))
    assert found.dilation == (2, 1)
    assert found.groups == 2


# torch may copy its input for this, and says so
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "kernel, dilation, expected",
    [
        (3, 1, ((1, 1), (1, 1))),
        ((3, 2), 1, ((1, 1), (0, 1))),  # one zero, behind
        ((4, 1), (3, 1), ((4, 5), (0, 0))),  # (4 - 1) * 3 = 9 zeros
    ],
)
def test_padding_same(kernel: int, dilation: int, expected: tuple) -> None:
    layer = nn.Conv2d(2, 2, kernel, padding="same", dilation=dilation)
    assert conv(layer, 1, 2, 9, 9).padding == expected


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_same_is_torchs() -> None:
    weight, x = torch.randn(2, 2, 4, 2), torch.randn(1, 2, 9, 9)
    layer = nn.Conv2d(2, 2, (4, 2), padding="same", bias=False)
    (top, bottom), (left, right) = conv(layer, 1, 2, 9, 9).padding
    padded = F.conv2d(F.pad(x, (left, right, top, bottom)), weight)
    assert torch.equal(padded, F.conv2d(x, weight, padding="same"))


def test_padding_valid() -> None:
    assert conv(nn.Conv2d(2, 2, 3, padding="valid"), 1, 2, 9, 9).padding == ((0, 0), (0, 0))


def test_conv1d() -> None:
    found = conv(nn.Conv1d(2, 4, 3, stride=2, padding=1, bias=False), 1, 2, 9)
    assert (found.dimensions, found.stride, found.padding) == (1, (2,), ((1, 1),))
    assert found.bias is None


def test_transposed() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    found = conv(layer, 1, 4, 5, 5)
    assert found.transposed
    assert (found.stride, found.padding) == ((2, 2), ((1, 1), (1, 1)))
    # its schema has groups before dilation, unlike that of other convolutions
    assert (found.output_padding, found.groups, found.dilation) == ((1, 1), 2, (1, 1))


def test_linear_without_bias() -> None:
    found = layer_of(only(nn.Linear(3, 4, bias=False), 2, 5, 3))
    assert isinstance(found, Linear)
    assert found.bias is None and found.groups == 1
    assert found.channel_dim() == 2  # (2, 5, 4)


def test_norms() -> None:
    batch = as_norm(only(nn.BatchNorm2d(3, affine=False, eps=0.5), 1, 3, 4, 4))
    assert batch is not None
    assert (batch.kind, batch.weight, batch.bias, batch.eps) == ("batch_norm", None, None, 0.5)
    assert batch.mean is not None and nodes.target_name(batch.mean) == "running_mean"
    assert batch.variance is not None and nodes.target_name(batch.variance) == "running_var"
    layer = as_norm(only(nn.LayerNorm((4, 5)), 1, 3, 4, 5))
    assert layer is not None
    assert (layer.kind, layer.last, layer.mean, layer.eps) == ("layer_norm", 2, None, 1e-5)
    assert layer.weight is not None and nodes.target_name(layer.weight) == "weight"
    group = as_norm(only(nn.GroupNorm(2, 4), 1, 4, 3))
    assert group is not None and (group.kind, group.last) == ("group_norm", 0)


class Attends(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x + 1, x + 2, is_causal=True)


def test_attention() -> None:
    graph = capture(Attends(), Batch((torch.zeros(1, 2, 3, 4),), {}, None)).graph
    (found,) = [a for n in graph.nodes if (a := as_attention(n)) is not None]
    assert found.query.op == "placeholder"
    assert [operator(n) for n in (found.key, found.value)] == ["add", "add"]
    assert (found.mask, found.causal, found.scale) == (None, True, None)


def test_other_nodes_are_none_of_them() -> None:
    node = only(nn.ReLU(), 1, 3)
    assert layer_of(node) is as_linear(node) is as_norm(node) is as_attention(node) is None
    assert layer_of(nodes.argument(node, 0)) is None  # an input


def test_arguments() -> None:
    node = only(nn.ReLU6(), 1, 3)
    assert nodes.value_of(node).shape == (1, 3)
    assert nodes.optional_argument(node, 5) is None
    with pytest.raises(TypeError, match="has no value as its argument 5"):
        nodes.argument(node, 5)
    pool = only(nn.MaxPool2d(2), 1, 3, 4, 4)
    assert nodes.setting(pool, "ceil_mode") is False
    with pytest.raises(KeyError, match="has no argument 'groups'"):
        nodes.setting(pool, "groups")


def test_modules_by_kind() -> None:
    network = nn.Sequential(nn.ReLU())
    assert nodes.module(network, "0", nn.ReLU) is network[0]
    with pytest.raises(TypeError, match="0 is a ReLU, not a Linear"):
        nodes.module(network, "0", nn.Linear)
