"""Factors for what linear layers read, where no layer before can take them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.quantization import quantization, quantize
from mirabelle.quantization.repairs.smoothing import smooth_inputs, sources
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.smoothing import smoothed
from tests.quantization.repairs.networks import relative

WIDTH = 16


class Block(nn.Module):
    """Normalized after its sum, as BERT's: what `up` reads goes on into the next sum as well."""

    def __init__(self, large: float):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        with torch.no_grad():
            self.norm.weight[3] = large
            self.up.weight[:, 3] /= large

    def forward(self, x):
        x = self.norm(x)
        return x + self.down(F.gelu(self.up(x)))


class Tied(Block):
    def forward(self, x):
        x = self.norm(x)
        return x + self.down(F.gelu(self.up(x))) + self.down(F.gelu(self.up(2 * x)))


def network(large: float = 200.0, kind: type[Block] = Block) -> nn.Module:
    torch.manual_seed(0)
    return kind(large).eval()


def data(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 5, WIDTH, generator=generator) for _ in range(4)]


def test_a_large_channel_no_longer_sets_the_step():
    model, test = network(), data(1)[0]
    with torch.no_grad():
        wanted = model.up(model.norm(test))
    errors = {}
    for repair in ("auto", "bias-means"):
        run = torch.fx.Interpreter(quantize(model, data(), repair=repair), False)
        with torch.no_grad():
            run.run(test)
        gelu = next(n for n in run.module.graph.nodes if n.name == "gelu")
        errors[repair] = relative(wanted, run.env[gelu.all_input_nodes[0]])
    assert errors["auto"] < errors["bias-means"] / 4
    assert "smooth-inputs" in quantization(quantize(model, data())).repair


def test_the_output_stays_the_same_and_so_does_the_network():
    model, batches = network(), [Batch((x,), {}, None) for x in data()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = captured(model, batches[0])
    assert [n.name for n in sources(found)]
    smooth_inputs(found, found, batches)
    assert smoothed(found.graph)
    with torch.no_grad():
        assert torch.allclose(found(*batches[1].args), model(*batches[1].args), atol=1e-3)
    quantize(model, data())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nothing_is_multiplied_where_it_would_gain_little():
    q = quantize(network(large=1.0), data())
    assert quantization(q).smoothed == ()
    assert not any(name.startswith("smoothing") for name, _ in q.named_buffers())


def test_a_network_with_modules_of_these_names(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.smoothing, self.smoothing_factors = network(), nn.Linear(WIDTH, WIDTH)
            self.smoothing_factors.register_buffer("gain", torch.rand(WIDTH))

        def forward(self, x):
            return self.smoothing_factors(self.smoothing(x)) * self.smoothing_factors.gain

    torch.manual_seed(0)
    q = quantize(Named().eval(), data())
    assert quantization(q).smoothed
    mb.save(q, tmp_path / "model")
    again = mb.load(tmp_path / "model", Named().eval())
    with torch.no_grad():
        assert torch.equal(again(data(2)[0]), q(data(2)[0]))


def test_weights_that_several_layers_share_stay():
    found = captured(network(kind=Tied), Batch((data()[0],), {}, None))
    assert sources(found) == []


def test_vectors_alone_are_left_to_other_repairs():
    plain = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    assert sources(captured(plain, Batch((torch.randn(4, 6),), {}, None))) == []


@pytest.mark.parametrize("target", ["x86", "openvino", "symmetric"])
def test_saved_exported_and_verified(target, tmp_path):
    model = network()
    q = quantize(model, data(), target=target)
    assert quantization(q).smoothed
    mb.save(q, tmp_path / "model")
    again = mb.load(tmp_path / "model", network())
    with torch.no_grad():
        assert torch.equal(again(data(2)[0]), q(data(2)[0]))
    assert quantization(again) == quantization(q)
    file = mb.export(again, tmp_path / "file", inputs=data()[0][:1])
    found = mb.verify(again, file, data(2)[:1])
    assert all(layer.max_off_by <= 1 for layer in found.layers)
