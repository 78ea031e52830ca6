"""Folding BatchNorm, against numbers by hand and the network before it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.graph.capture import capture, operator
from mirabelle.quantization import quantize
from mirabelle.quantization.simulation.folding import fold_batchnorm
from mirabelle.quantization.simulation.graph import captured as captured_network
from tests.quantization.observed import relative
from tests.quantized_networks import Network, batches, build, conv, head


def test_even_paddings_become_the_convolutions_own():
    """Uneven ones cannot."""
    network, x = build("padded"), batches("padded", 1)[0]
    found = captured_network(network, Batch((x,), {}, None))
    assert sum("pad" in operator(n) for n in found.graph.nodes) == 1
    assert next(n.args[4] for n in found.graph.nodes if operator(n) == "conv2d") == [3, 2], (
        "rows have two zeros more on each side, columns one"
    )
    with torch.no_grad():
        assert torch.allclose(found(x), network(x), atol=1e-6)


def test_what_writes_over_a_layer_or_a_sum_gives_a_new_value():
    """Over what is read nowhere else: other values are written over as the network says."""

    def forward(n, x):
        y, z = n.a(x), n.b(x)
        F.relu6(y, inplace=True)
        F.hardswish(z, inplace=True)
        w = n.c(x)
        w += z  # neither is read again
        F.relu_(w)
        early, late = n.d(x), n.e(x)
        late += early
        late.mul_(2)
        early.neg_()  # read above
        twice = early.view(early.shape)
        twice.add_(1)
        return head(n, y + w + late + early)

    module = Network(forward, **{name: conv(3, 8) for name in "abcde"}, fc=nn.Linear(8, 5)).eval()
    x = batches(count=1)[0]
    q = quantize(module, [x], bits=16)
    names = [operator(n) for n in q.graph.nodes if n.op == "call_function"]
    assert (
        {"relu", "hardswish", "add", "mul"} <= {*names}
        and {"hardtanh", "relu6"} & {*names}
        and "neg_" in names
        and "hardswish_" not in names
    )
    assert relative(module(x), q(x)) < 1e-3


def folded(network: nn.Module, x: torch.Tensor):
    captured = capture(network, Batch((x,), {}, None))
    return captured, fold_batchnorm(captured)


def norms(graph_module) -> int:
    return sum(operator(n) == "batch_norm" for n in graph_module.graph.nodes)


def test_fold_by_hand():
    """w = 3, b = 1, mean 5, var 4 (eps 0), gamma 6, beta 7: w' = 3 * 6 / 2 = 9, b' = (1 - 5) * 6 /
    2 + 7 = -5.
    """
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    values = {
        "0.weight": 3,
        "0.bias": 1,
        "1.weight": 6,
        "1.bias": 7,
        "1.running_mean": 5,
        "1.running_var": 4,
        "1.num_batches_tracked": 1,
    }
    network.load_state_dict(
        {k: torch.full_like(network.state_dict()[k], v) for k, v in values.items()}
    )
    graph, left = folded(network, torch.ones(2, 1, 2, 2))
    assert left == [] and norms(graph) == 0
    assert {k: v.item() for k, v in graph.state_dict().items()} == {"0.weight": 9.0, "0.bias": -5.0}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "grouped", "linear", "conv1d"])
def test_fold_keeps_the_output(kind, bias, affine):
    torch.manual_seed(1)
    layer, norm, x = {
        "conv": (
            nn.Conv2d(4, 6, 3, bias=bias),
            nn.BatchNorm2d(6, affine=affine),
            torch.randn(4, 4, 7, 7),
        ),
        "grouped": (
            nn.Conv2d(4, 6, 3, groups=2, bias=bias),
            nn.BatchNorm2d(6, affine=affine),
            torch.randn(4, 4, 7, 7),
        ),
        "linear": (nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6, affine=affine), torch.randn(4, 4)),
        "conv1d": (
            nn.Conv1d(4, 6, 3, bias=bias),
            nn.BatchNorm1d(6, affine=affine),
            torch.randn(4, 4, 7),
        ),
    }[kind]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    network = nn.Sequential(layer, norm).eval()
    graph, left = folded(network, x)
    assert left == [] and norms(graph) == 0 and set(graph.state_dict()) == {"0.weight", "0.bias"}
    assert torch.allclose(graph(x), network(x), rtol=1e-5, atol=1e-5)


class OwnBias(nn.Module):
    """A layer without a bias argument, in a module that has another tensor of that name."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.norm(F.conv2d(x, self.weight)) * self.bias.view(-1, 1, 1)


UNFOLDABLE = {
    "used twice": lambda: Network(
        lambda n, x: n.bn(n.c(n.c(x))), c=conv(3, 3), bn=nn.BatchNorm2d(3)
    ),
    "read twice": lambda: Network(
        lambda n, x: (lambda y: n.bn(y) + y)(n.c(x)), c=conv(3, 6), bn=nn.BatchNorm2d(6)
    ),
    "after a concatenation": lambda: Network(
        lambda n, x: n.bn(torch.cat([n.c(x), n.d(x)], 1)),
        c=conv(3, 3),
        d=conv(3, 3),
        bn=nn.BatchNorm2d(6),
    ),
    "batch statistics": lambda: Network(
        lambda n, x: n.bn(n.c(x)), c=conv(3, 6), bn=nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "other channels": lambda: Network(
        lambda n, x: n.bn(n.l(x.flatten(2))), l=nn.Linear(64, 3), bn=nn.BatchNorm1d(3)
    ),
    "first": lambda: Network(lambda n, x: n.c(n.bn(x)), c=conv(3, 6), bn=nn.BatchNorm2d(3)),
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_what_must_not_fold_stays(name):
    torch.manual_seed(2)
    network, x = UNFOLDABLE[name]().eval(), torch.randn(2, 3, 8, 8)
    if network.bn.running_mean is not None:
        network.bn.running_mean.normal_()
        network.bn.weight.data.uniform_(0.5, 2)
    graph, left = folded(network, x)
    assert len(left) == norms(graph) == 1
    assert torch.allclose(graph(x), network(x), atol=1e-5)


def test_fold_leaves_other_tensors_called_bias_alone():
    torch.manual_seed(3)
    network, x = OwnBias().eval(), torch.randn(2, 3, 8, 8)
    graph, left = folded(network, x)
    assert left == [] and torch.allclose(graph(x), network(x), atol=1e-4)
