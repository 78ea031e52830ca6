"""Residual blocks: which there are, and that a network without them is the original with zeros for
their branches.
"""

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.blocks import blocks, without
from mirabelle.channels.rewrite import FORM
from mirabelle.channels.skipping import skip, skipped_blocks
from mirabelle.graph.capture import capture
from mirabelle.graph.structure import Skipped
from mirabelle.measurement.macs import count_macs, count_parameters
from tests.modules import BottleneckNet, Head, Net, conv_bn, image, stir


class Transformer(nn.Module):
    """A block with two branches, before which it normalizes."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Basic(nn.Module):
    """A block that writes in place wherever it can."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.a, self.b = conv_bn(width, width), conv_bn(width, width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity, out = x, self.b(self.relu(self.a(x)))
        out += identity
        return self.relu(out)


def bottlenecks() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return stir(BottleneckNet(4, (2, 2))).eval(), image(size=16)


def transformers() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Linear(4, 16), Transformer(), Transformer(), nn.Linear(16, 3)
    return nn.Sequential(*layers).eval(), torch.randn(2, 5, 4)


def in_place() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
    return stir(nn.Sequential(stem, Basic(), Basic(), Head(8))).eval(), image()


def read_twice() -> tuple[nn.Module, torch.Tensor]:
    """The identity is read again, after a rectifier that writes in place."""
    torch.manual_seed(0)

    def forward(s, x):
        y = s.a(x)
        z = s.b(y) + y
        return s.head(torch.relu_(z) - y)

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), head=Head(8)).eval(), image()


def names(model: nn.Module, x: torch.Tensor) -> list[str]:
    return [b.name for b in blocks(capture(model, as_batch(x)).graph)]


CASES = {
    "bottlenecks": (bottlenecks, ["stages.1.conv3"], False),
    "all bottlenecks": (bottlenecks, ["stages.1.conv3", "stages.3.conv3"], False),
    "one branch of two": (transformers, ["1.mlp.2", "2.attention.out_proj"], True),
    "a whole block": (transformers, ["1.mlp.2", "1.attention.out_proj"], False),
    "in place": (in_place, ["1.b.0"], False),
    "in place, all": (in_place, ["1.b.0", "2.b.0"], False),
    "read twice": (read_twice, ["b.0"], True),
}


@pytest.mark.parametrize("case", CASES)
def test_without_blocks_it_is_the_original_with_zeros(case, tmp_path):
    build, gone, as_graph = CASES[case]
    model, x = build()
    assert set(gone) <= set(names(model, x))
    small = skip(model, as_batch(x), gone)
    assert (FORM in getattr(small, "meta", {})) == as_graph
    y = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    expected = without(capture(model, as_batch(x)), gone, as_batch(y))
    with torch.no_grad():
        torch.testing.assert_close(small(y), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model(y), expected)
    assert not set(gone) & set(names(small, x))
    assert count_macs(small, x) < count_macs(model, x)
    assert count_parameters(small) < count_parameters(model)
    mb.save(small, tmp_path)
    back = mb.load(tmp_path, build()[0])
    with torch.no_grad():
        assert torch.equal(back(y), small.eval()(y))
    assert skipped_blocks(back) == skipped_blocks(small) and len(skipped_blocks(small)) > 0


def test_a_dead_block_goes_without_a_trace():
    """The last BatchNorm gives nothing: the network is the same without the block."""
    model, x = bottlenecks()
    for tensor in (model.stages[3].bn3.weight, model.stages[3].bn3.bias):
        tensor.data.zero_()
    small = skip(model, as_batch(x), ["stages.3.conv3"])
    assert isinstance(small.stages[3], Skipped) and type(small) is BottleneckNet
    assert not list(small.stages[3])  # its rectifier would do nothing a second time
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-6)


def test_activations_stay():
    """After what may be negative the rectifier of the block is not nothing."""
    torch.manual_seed(0)
    model = stir(nn.Sequential(conv_bn(3, 8), Basic(), Head(8))).eval()
    small = skip(model, as_batch(image()), ["1.b.0"])
    assert small[1].activations() == ["relu"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.head(s.b(s.a(x)) + s.c(s.a(x))),  # neither is computed from the other
        lambda s, x: s.head(torch.relu(y := s.a(x)) + y),  # a branch without a layer
        lambda s, x: s.head((z := s.b(y := s.a(x))) + y) * z.mean(),  # the branch is read elsewhere
        lambda s, x: s.head(s.b(y := s.a(x)) * y),  # no addition
        lambda s, x: s.head(s.b((y := s.a(x)).mean((2, 3), keepdim=True)) + y),  # other shapes
        lambda s, x: s.head(torch.add(y := s.a(x), s.b(y), alpha=2)),
    ],
)
def test_what_is_no_block(forward):
    model = Net(
        forward,
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 8, 3, padding=1),
        c=nn.Conv2d(8, 8, 1),
        head=Head(8),
    ).eval()
    assert names(model, image()) == []


def test_blocks_inside_blocks():
    """The outer one takes the inner one along."""
    model = Net(
        lambda s, x: s.head((y := s.a(x)) + s.c((z := s.b(y)) + s.d(z))),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 8, 1),
        c=nn.Conv2d(8, 8, 1),
        d=nn.Conv2d(8, 8, 1),
        head=Head(8),
    ).eval()
    x = image()
    assert names(model, x) == ["d", "c"]
    small = skip(model, as_batch(x), ["c", "d"])
    with torch.no_grad():
        torch.testing.assert_close(small(x), model.head(model.a(x)))
    with pytest.raises(InputError, match="no residual block 'e'"):
        skip(model, as_batch(x), ["e"])


def test_explained():
    model, x = bottlenecks()
    found = mb.explain(model, x)
    assert found.blocks == ("stages.1.conv3", "stages.3.conv3") and not found.skipped
    small = skip(model, as_batch(x), ["stages.1.conv3"])
    found = mb.explain(small, x)
    assert found.blocks == ("stages.3.conv3",) and found.skipped == ("stages.1",)
    assert "skipped: stages.1" in str(found) and found.to_dict()["blocks"] == ["stages.3.conv3"]
