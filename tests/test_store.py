"""What was saved comes back with the same outputs, bit by bit; what is damaged or another network's
is refused.
"""

import errno
import json

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle import store
from mirabelle.base.errors import InputError
from tests.tiny import data, model
from tests.wide_networks import WIDE


def example() -> torch.Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Module:
    return mb.prune(model(), example(), macs=0.5, align=2, criterion="l1", data=data()[0])


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    small = pruned().eval()
    return {
        "original": model().eval(),
        "pruned": small,
        "quantised": mb.quantize(small, data()[1], samples=32).eval(),
    }


@pytest.mark.parametrize("name", ["original", "pruned", "quantised"])
def test_round_trip(networks, name, tmp_path):
    net, fresh = networks[name], model(5)
    before = [t.clone() for t in fresh.state_dict().values()]
    assert mb.save(net, tmp_path / "a") == tmp_path / "a"
    back = mb.load(tmp_path / "a", fresh)
    with torch.no_grad():
        assert torch.equal(back(example()), net(example()))
    assert not back.training and all(
        torch.equal(a, b) for a, b in zip(before, fresh.state_dict().values(), strict=True)
    )
    mb.save(back, tmp_path / "b")
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model.json", "model.safetensors"]
    # Still a network: it trains, and is saved and loaded again.
    trained = mb.fit(back, data()[0])
    mb.save(trained, tmp_path / "c")
    with torch.no_grad():
        assert torch.equal(mb.load(tmp_path / "c", model())(example()), trained(example()))


class Versioned(nn.Linear):
    """As torchvision's MNASNet: it does not load what does not say by which version it was
    written.
    """

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_with_a_version_of_their_own(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), Versioned(8, 4))

    net = mb.prune(
        build(),
        example(),
        params=0.7,
        align=1,
        criterion="l1",
        steps=2,
        train={"steps": 2},
        data=data()[0],
        checkpoint=tmp_path / "c",
    )
    again = mb.prune(
        build(),
        example(),
        params=0.7,
        align=1,
        criterion="l1",
        steps=2,
        train={"steps": 2},
        data=data()[0],
        checkpoint=tmp_path / "c",
    )
    assert again(example()).shape == (5, 4)
    back = mb.load(mb.save(net, tmp_path / "n"), build())
    with torch.no_grad():
        assert torch.equal(back(example()), net(example()))


def test_no_pickle(networks, tmp_path):
    mb.save(networks["quantised"], tmp_path)
    for file in tmp_path.iterdir():
        assert file.suffix in (".json", ".safetensors") and not file.read_bytes().startswith(
            (b"PK", *(bytes([0x80, protocol]) for protocol in range(6)))
        )


def test_damaged(networks, tmp_path):
    mb.save(networks["pruned"], tmp_path)
    weights, described = tmp_path / "model.safetensors", tmp_path / "model.json"
    good, text = weights.read_bytes(), described.read_text()
    for bad in (
        good[:-1],
        good[:20],
        b"",
        bytes([good[0] ^ 1]) + good[1:],
        good[:-3] + bytes([good[-3] ^ 16]) + good[-2:],
    ):
        weights.write_bytes(bad)
        with pytest.raises(InputError, match="damaged"):
            mb.load(tmp_path, model())
    weights.write_bytes(good)
    for bad in (
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1}',
        text.replace('"format": 1', '"format": 2'),
        "\x00",
    ):
        described.write_text(bad)
        with pytest.raises(InputError):
            mb.load(tmp_path, model())
    described.write_text(text)
    weights.unlink()
    with pytest.raises(InputError, match="no weights"):
        mb.load(tmp_path, model())
    with pytest.raises(InputError, match=r"no model\.json"):
        mb.load(tmp_path / "nowhere", model())


@pytest.mark.parametrize("part", [{}, [], {"bits": "x"}, {"tensors": 3}])
def test_quantisation_that_makes_no_sense(networks, tmp_path, part):
    mb.save(networks["quantised"], tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    content["quantization"] = (
        part if not isinstance(part, dict) or not part else {**content["quantization"], **part}
    )
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(InputError):
        mb.load(tmp_path, model())


def test_another_network(networks, tmp_path):
    mb.save(networks["pruned"], tmp_path)
    renamed = nn.Sequential(*list(model())[:-1], nn.Identity(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="unpruned"):
        mb.load(tmp_path, renamed)
    with pytest.raises(InputError, match="another network"):
        other = model()
        other[0] = nn.Conv1d(1, 8, 3, bias=False)
        mb.load(tmp_path, other)


def test_another_type_is_refused(networks, tmp_path):
    mb.save(networks["original"], tmp_path)
    with pytest.raises(InputError, match=r"saved as torch\.float32.* has torch\.float64"):
        mb.load(tmp_path, model().double())


def test_interrupted_save_never_loads_as_something_else(networks, tmp_path, monkeypatch):
    mb.save(networks["original"], tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_tensors", full)
        with pytest.raises(OSError, match="No space"):
            mb.save(networks["pruned"], tmp_path)
    with torch.no_grad():
        assert torch.equal(mb.load(tmp_path, model(3))(example()), networks["original"](example()))
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            mb.save(networks["pruned"], tmp_path)
    with pytest.raises(InputError, match="not the file"):
        mb.load(tmp_path, model())


@pytest.mark.parametrize(
    "name",
    [
        "attention: fused",
        "attention: module",
        "class token",
        "unequal split",
        "weight standardisation",
        "lstm",
        "gru cell",
    ],
)
def test_pruned_networks_are_saved_pruned_again_quantised_and_exported(name, tmp_path):
    torch.manual_seed(0)
    model, x = WIDE[name]()
    model.eval()
    data = [torch.randn_like(x) for _ in range(2)]
    once = mb.prune(
        model,
        x,
        macs=0.8,
        criterion="brain_surgeon",
        data=data,
        batches=2,
        align=1,
        repair="least-squares",
    ).eval()
    twice = mb.prune(once, x, macs=0.8, criterion="l2", align=1, repair=None).eval()
    y = torch.randn_like(x)
    for i, network in enumerate([once, twice, mb.quantize(twice, data)]):
        mb.save(network, tmp_path / str(i))
        again = mb.load(tmp_path / str(i), WIDE[name]()[0])
        assert type(again) is type(network) or (
            isinstance(network, torch.fx.GraphModule) and isinstance(again, torch.fx.GraphModule)
        )
        torch.testing.assert_close(again(y), network(y), rtol=0, atol=0)
    artifact = mb.export(twice, tmp_path / "out", inputs=x)
    torch.testing.assert_close(
        torch.as_tensor(artifact(y.numpy())), twice(y).detach(), rtol=1e-4, atol=1e-4
    )
