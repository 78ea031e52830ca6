"""What tests read off a quantized network, and a small one."""

import torch
import torch.nn.functional as F
from torch import nn

from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from tests.quantized_networks import Network, conv, head


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / a.detach().norm())


def activations(q: nn.Module) -> dict[str, ActivationQuantizer]:
    return {
        n.removeprefix("quantizers."): m
        for n, m in q.named_modules()
        if isinstance(m, ActivationQuantizer)
    }


def weights(q: nn.Module) -> dict[str, WeightQuantizer]:
    return {
        n.removeprefix("quantizers."): m
        for n, m in q.named_modules()
        if isinstance(m, WeightQuantizer)
    }


def small(**options) -> Network:
    torch.manual_seed(0)
    return Network(
        lambda n, x: head(n, F.relu(n.a(x))), a=conv(3, 8, **options), fc=nn.Linear(8, 5)
    ).eval()
