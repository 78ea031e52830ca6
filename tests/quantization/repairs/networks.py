"""Networks for the tests of repairs: an attention layer, channels of unequal size."""

import torch
import torch.nn.functional as F
from torch import nn

from mirabelle.base.data import Batch
from tests.quantized_networks import Network, conv


def as_batches(data) -> list[Batch]:
    return [Batch((x,), {}, None) for x in data]


def relative(a, b) -> float:
    return float((a - b).norm() / a.norm())


class Attention(nn.Module):
    """A block of a transformer: attention and an MLP behind LayerNorm, with residuals."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.ln1, self.qkv, self.proj = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.ln2, self.fc1, self.fc2 = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (
            self.qkv(self.ln1(x))
            .reshape(n, length, 3, 2, width // 2)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        x = x + self.proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        )
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x))))


def attention() -> nn.Module:
    torch.manual_seed(0)
    network = Attention().eval()
    with torch.no_grad():
        for norm in (network.ln1, network.ln2):  # a few channels far larger than the others
            norm.weight[3], norm.weight[7], norm.bias[5] = 40.0, 25.0, -30.0
    return network


TOKENS = [torch.randn(8, 10, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def two_layers(first: list, second: list) -> nn.Module:
    network = Network(lambda n, x: n.b(F.relu(n.a(x))), a=nn.Linear(1, 2), b=nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor(first))
        network.a.bias.copy_(torch.tensor([1.0, 2.0]))
        network.b.weight.copy_(torch.tensor(second))
    return network


def through_relu6() -> nn.Module:
    """Channels of 4 and 0.5 at an input of 1, ReLU6, a depthwise layer."""
    network = Network(
        lambda n, x: n.b(F.relu6(n.a(x))).mean((2, 3)),
        a=nn.Conv2d(1, 2, 1),
        b=nn.Conv2d(2, 2, 1, groups=2),
    ).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([4.0, 0.5]).view(2, 1, 1, 1)), network.a.bias.zero_()
        network.b.weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)), network.b.bias.zero_()
    return network


def behind_batchnorm() -> nn.Module:
    """A convolution and BatchNorm whose channels are normal with mean 1, 0 and deviation 0.5, 2;
    then ReLU and a 1x1 convolution.
    """
    torch.manual_seed(0)
    network = Network(
        lambda n, x: n.b(F.relu(n.bn(n.a(x)))),
        a=conv(4, 2, 1, bias=False),
        bn=nn.BatchNorm2d(2),
        b=conv(2, 3, 1),
    ).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]]).view(2, 4, 1, 1))
        (
            network.bn.weight.copy_(torch.tensor([0.5, -2.0])),
            network.bn.bias.copy_(torch.tensor([1.0, 0.0])),
        )
    return network
