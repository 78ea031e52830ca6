"""Which networks may take one another's weights, as `mb.load` asks."""

import pytest
import torch
from torch import nn

import mirabelle as mb


class _Shifting(nn.Module):
    """`shift` is an argument of the constructor that forward fits to the picture, as Swin does."""

    def __init__(self, shift: int = 3):
        super().__init__()
        self.shift, self.layer, self.head = shift, nn.Conv2d(3, 16, 3), nn.Linear(16, 2)

    def fit(self, size: int) -> None:
        self.shift = self.shift if size > 8 else 0

    def forward(self, x):
        self.fit(x.shape[-1])
        x = torch.roll(self.layer(x).relu(), self.shift, -1)
        return self.head(x.mean((2, 3)))


def test_what_forward_sets_is_no_hyperparameter(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    small = mb.prune(_Shifting(), x, macs=0.5, criterion="l1")
    expected = small(x)
    assert small.shift == 0
    again = mb.load(mb.save(small, tmp_path / "small"), _Shifting())
    assert torch.equal(again(x), expected)


class _Region(nn.Module):
    """A region without gradients, and a size that is written into forward: a graph form."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 32), nn.Linear(32, 2)

    def forward(self, x):
        with torch.no_grad():
            scale = torch.arange(4, dtype=torch.float64).to(x.dtype) + 1
        y = self.layer(x).view(-1, 4, 8) * scale[:, None]
        return self.head(y.flatten(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_graph_form_is_loaded_whatever_the_callers_mode(tmp_path, mode):
    x = torch.randn(3, 8)
    small = mb.prune(_Region(), x, macs=0.6, align=1, criterion="l1")
    assert isinstance(small, torch.fx.GraphModule)
    with mode():
        again = mb.load(mb.save(small, tmp_path / "small"), _Region())
    assert torch.equal(again(x), small(x))
