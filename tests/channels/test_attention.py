"""Products of queries and keys as integers, for targets that have them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirabelle as mb
from mirabelle.graph.capture import operator
from mirabelle.quantization import quantization, quantize, rebuild
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer
from tests.quantized_networks import Network, needs


def _heads(n, x):
    return n.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)


def _fused(n, x):
    q, k, v = _heads(n, x)
    return n.fc(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _written_out(n, x):
    q, k, v = _heads(n, x)
    weights = F.dropout((q * 8**-0.5) @ k.transpose(2, 3), 0.1, n.training).softmax(-1)
    return n.fc((weights @ v).transpose(1, 2).flatten(2))


def _across(n, x):
    """Queries from a layer, keys from none."""
    q = n.q(x)
    return n.fc((q @ x.transpose(1, 2)).softmax(-1) @ x)


def network(forward):
    torch.manual_seed(0)
    return Network(forward, qkv=nn.Linear(16, 48), fc=nn.Linear(16, 5)).eval()


def data(count=2):
    return [
        torch.randn(8, 10, 16, generator=torch.Generator().manual_seed(i)) for i in range(count)
    ]


def rounded(q):
    """By node that has a grid, what reads it, through a transposition."""
    calls = [
        n
        for n in q.graph.nodes
        if n.op == "call_module" and isinstance(q.get_submodule(n.target), ActivationQuantizer)
    ]
    return {
        n.args[0].name: {
            r.name for u in n.users for r in (u.users if operator(u) == "transpose" else [u])
        }
        for n in calls
    }


@pytest.mark.parametrize(
    "forward, product", [(_fused, "scaled_dot_product_attention"), (_written_out, "matmul")]
)
def test_queries_and_keys_are_integers_on_openvino_alone(forward, product, tmp_path):
    net, x = network(forward), data()
    q = quantize(net, x, target="openvino")
    readers = rounded(q)
    assert sum(product in r for r in readers.values()) == 2 and not any(
        "matmul_1" in r for r in readers.values()
    ), "what weighs the values is float"
    with torch.no_grad():
        error = float((net(x[0]) - q(x[0])).norm() / net(x[0]).norm())
    assert 0 < error < 0.03
    assert not any(product in r for r in rounded(quantize(net, x, target="x86")).values())
    again = rebuild(net, quantization(q).to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x[0]), q(x[0]))
    needs("openvino")
    found = mb.verify(q, mb.export(q, tmp_path, runtime="openvino", inputs=x[0][:1]), x)
    assert (
        found.first_departure is None and found.sqnr_db > 30 and len(found.layers) == len(readers)
    )


@pytest.mark.parametrize("forward", [_fused, _written_out])
def test_what_a_float_layer_gives_is_multiplied_in_float(forward):
    readers = rounded(quantize(network(forward), data(), target="openvino", keep=["qkv"]))
    assert readers and set.union(*readers.values()) == {"flatten", "linear_1"}


def test_a_kept_module_keeps_its_product():
    block = nn.Sequential(network(_fused), nn.Linear(5, 3)).eval()
    assert "scaled_dot_product_attention" in set.union(
        *rounded(quantize(block, data(), target="openvino")).values()
    )
    assert rounded(quantize(block, data(), target="openvino", keep=["0"])) == {
        "linear_1": {"linear_2"}
    }


def test_keys_from_no_layer_stay_in_float():
    torch.manual_seed(0)
    net = Network(_across, q=nn.Linear(16, 16), fc=nn.Linear(16, 5)).eval()
    assert "linear" not in rounded(quantize(net, data(), target="openvino"))
