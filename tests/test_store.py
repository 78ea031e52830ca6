"""What was saved comes back with the same outputs, bit by bit; what is damaged or another network's
is refused.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import nn

import mirabelle as mb
from mirabelle import store
from mirabelle.base.errors import InputError
from mirabelle.base.files import SEAL, sealed
from mirabelle.store import FILES
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
        "quantized": mb.quantize(small, data()[1], samples=16).eval(),
    }


def test_a_saved_folder_has_the_card_that_hubs_read(networks, tmp_path):
    folder = mb.save(networks["quantized"], tmp_path / "q")
    text = (folder / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata == {"library_name": "mirabelle", "tags": ["mirabelle", "pytorch", "int8"]}
    sparse = mb.sparsify(networks["original"], sparsity=0.5, criterion="magnitude", repair=None)
    mb.save(sparse, folder)
    assert "- sparse" in (folder / "README.md").read_text()  # a card of ours follows the network
    (folder / "README.md").write_text("# Mine")
    mb.save(networks["pruned"], folder)
    assert (folder / "README.md").read_text() == "# Mine"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", ["original", "pruned", "quantized"])
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
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(FILES)
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
        rounds=2,
        train={"steps": 2, "lr": 1e-3},
        data=data()[0],
        checkpoint=tmp_path / "c",
    )
    again = mb.prune(
        build(),
        example(),
        params=0.7,
        align=1,
        criterion="l1",
        rounds=2,
        train={"steps": 2, "lr": 1e-3},
        data=data()[0],
        checkpoint=tmp_path / "c",
    )
    assert again(example()).shape == (5, 4)
    back = mb.load(mb.save(net, tmp_path / "n"), build())
    with torch.no_grad():
        assert torch.equal(back(example()), net(example()))


def test_no_pickle(networks, tmp_path):
    mb.save(networks["quantized"], tmp_path)
    for file in tmp_path.iterdir():
        assert file.suffix in (".json", ".safetensors", ".md") and not file.read_bytes().startswith(
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
        '{"format": 4}',
        text.replace('"format": 4', '"format": 3'),
        text.replace('"sparse": {}', '"sparse": {}, "sparse": {}'),
        text.replace('"network": "', '"network": "other '),
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + "}",
        '{"format": NaN}',
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


def edited(folder: Path, change: Callable[[dict], object], seal: bool) -> None:
    """Changes what `model.json` says; seal: as a stranger would, who can compute checksums."""
    content = json.loads((folder / "model.json").read_text())
    change(content)
    content.pop(SEAL)
    (folder / "model.json").write_text(
        json.dumps(sealed(content) if seal else {**content, SEAL: "0" * 64})
    )


EDITS = {
    "no description": lambda c: c.update(quantization={}),
    "a list": lambda c: c.update(quantization=[]),
    "text for bits": lambda c: c["quantization"].update(bits="x"),
    "bits without end": lambda c: c["quantization"].update(bits=1e11),
    "bits of 300": lambda c: c["quantization"].update(weight_bits=300),
    "precision": lambda c: c["quantization"].update(precision={"linear": 10**9}),
    "target": lambda c: c["quantization"].update(target="abacus"),
    "tensors": lambda c: c["quantization"].update(tensors=3),
    "sites": lambda c: c["quantization"].update(sites=[[]]),
    "a large example": lambda c: c["quantization"].update(inputs=[["", [10**6, 10**6], "float32"]]),
    "a negative example": lambda c: c["quantization"].update(inputs=[["", [-1, 1], "float32"]]),
    "no type": lambda c: c["quantization"].update(inputs=[["", [1, 1, 8, 8], "load"]]),
    "large sizes": lambda c: c["float_sizes"].update({"0.weight": [10**6, 10**6, 3, 3]}),
    "sizes that are text": lambda c: c["float_sizes"].update({"0.weight": "x"}),
    "another architecture": lambda c: c["architecture"].pop(),
    "no architecture": lambda c: c.pop("architecture"),
    "no checksum of the weights": lambda c: c.pop("sha256"),
    "sparse weights": lambda c: c["sparse"].update(x={"block": 1, "shape": [10**9, 10**9]}),
    "graph form": lambda c: c.update(graph_form={"sizes": {}, "inputs": [], "cuts": []}),
}


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("name", EDITS)
def test_descriptions_that_make_no_sense(networks, tmp_path, name, seal):
    mb.save(networks["quantized"], tmp_path)
    edited(tmp_path, EDITS[name], seal)
    with pytest.raises(InputError, match=None if seal else "checksum"):
        mb.load(tmp_path, model())


@pytest.mark.parametrize(
    "change", [{"bits": 9}, {"weight_bits": 4}, {"target": "arm"}, {"samples": 31}]
)
def test_model_json_is_under_a_checksum(networks, tmp_path, change):
    mb.save(networks["quantized"], tmp_path)
    file = tmp_path / "model.json"
    content = json.loads(file.read_text())
    content["quantization"] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="checksum does not fit"):
        mb.load(tmp_path, model())


class Strided(nn.Module):
    """The stride is an argument of the constructor; `calls` is what forward counts."""

    def __init__(self, stride: int = 1):
        super().__init__()
        self.weight, self.stride, self.calls = nn.Parameter(torch.ones(4, 1, 3, 3)), stride, 0

    def forward(self, x):
        self.calls += 1
        return nn.functional.conv2d(x, self.weight, stride=self.stride).mean((2, 3))


def strided() -> nn.Module:
    result = model()
    result[0].stride = (2, 2)
    return result


def otherwise_activated() -> nn.Module:
    result = model()
    result[2] = nn.GELU()
    return result


@pytest.mark.parametrize("name", ["original", "pruned", "quantized"])
@pytest.mark.parametrize(
    ("build", "words"), [(strided, "stride"), (otherwise_activated, "[Rr]e[Ll][Uu]|gelu")]
)
def test_networks_whose_tensors_fit_and_that_compute_something_else(
    networks, tmp_path, name, build, words
):
    mb.save(networks[name], tmp_path)
    with pytest.raises(InputError, match=rf"saved with.*({words}|conv2d)|other layers"):
        mb.load(tmp_path, build())


def test_hyperparameters_of_users_own_modules(tmp_path):
    net = Strided()
    net(example())
    mb.save(net, tmp_path)
    mb.load(tmp_path, Strided())
    with pytest.raises(InputError, match=r"stride=1\)', this one has.*stride=2"):
        mb.load(tmp_path, Strided(2))


def test_dropout_may_differ(networks, tmp_path):
    mb.save(networks["original"], tmp_path)
    other = model()
    other[8].p = 0.0
    mb.load(tmp_path, other)


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


@pytest.mark.parametrize("what", [3, None, nn.Conv2d])
def test_what_is_no_network(what, networks, tmp_path):
    mb.save(networks["original"], tmp_path)
    for call in (lambda: mb.load(tmp_path, what), lambda: mb.save(what, tmp_path)):
        with pytest.raises(InputError, match="model is a .*; expected a torch.nn.Module"):
            call()


@pytest.mark.parametrize(
    ("what", "words"), [(nn.LazyLinear(3), "no size yet"), (model().to("meta"), "has no values")]
)
def test_networks_without_sizes_or_values(what, words, networks, tmp_path):
    """torch copies what was loaded into a network on the device meta without a word."""
    mb.save(networks["original"], tmp_path)
    for call in (lambda: mb.load(tmp_path, what), lambda: mb.save(what, tmp_path / "other")):
        with pytest.raises(InputError, match=f"weight has {words}|weight {words}"):
            call()


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
        pytest.param("attention: module", marks=pytest.mark.slow),
        pytest.param("class token", marks=pytest.mark.slow),
        "unequal split",
        "weight standardization",
        "lstm",
        pytest.param("gru cell", marks=pytest.mark.slow),
    ],
)
def test_pruned_networks_are_saved_pruned_again_quantized_and_exported(name, tmp_path):
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
        samples=16,
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
