"""What a name of a network stands for, and what is said where it stands for none."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.base.files import write_tensors
from mirabelle.sources.networks import find, module
from tests.sources.pictures import Colors
from tests.tiny import model as tiny

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    def forward(self, x, y):
        return x.mean((1, 2, 3)) + y.float().mean(1)


def program(path: Path, network: nn.Module | None = None, x=X) -> Path:
    batch = torch.export.Dim("batch")
    shapes = ({0: batch},) if isinstance(x, torch.Tensor) else tuple({0: batch} for _ in x)
    network = (network or tiny()).eval()
    found = torch.export.export(
        network, (x,) if isinstance(x, torch.Tensor) else x, dynamic_shapes=shapes
    )
    torch.export.save(found, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    program(folder / "tiny.pt2")
    mb.export(tiny(), folder, runtime="onnxruntime", inputs=X, name="tiny")
    return folder


def test_a_network_is_itself():
    network = nn.Linear(2, 2)
    assert find(network).model is network and module(network) is network


def test_callables_and_weights_behind_them(tmp_path):
    trained = tiny(5)
    write_tensors(tmp_path / "w.safetensors", trained.state_dict())
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}},
        tmp_path / "w.pt",
    )
    for name in ("w.safetensors", "w.pt"):
        found = module(f"tests.tiny:model@{tmp_path / name}")
        assert torch.equal(found(X), trained.eval()(X))
    with pytest.raises(InputError, match="did you mean 'model'"):
        find("tests.tiny:modle")


def test_weights_that_do_not_belong(tmp_path):
    write_tensors(tmp_path / "w.safetensors", nn.Linear(2, 2).state_dict())
    with pytest.raises(InputError, match="does not hold the weights of tests.tiny:model"):
        find(f"tests.tiny:model@{tmp_path / 'w.safetensors'}")
    write_tensors(tmp_path / "w.safetensors", tiny(0, 4).state_dict())
    with pytest.raises(InputError, match=r"0.weight is \(4, 1, 3, 3\), and \(8, 1, 3, 3\)"):
        find(f"tests.tiny:model@{tmp_path / 'w.safetensors'}")


def test_pickles_of_code_are_refused(tmp_path):
    torch.save(tiny(), tmp_path / "net.pt")
    with pytest.raises(InputError, match="more than tensors"):
        find(f"tests.tiny:model@{tmp_path / 'net.pt'}")
    with pytest.raises(InputError, match="name the network that they belong to"):
        find(tmp_path / "net.pt")


def test_a_program_is_a_network_of_the_same_outputs_that_every_verb_takes(files):
    found = find(files / "tiny.pt2")
    assert torch.allclose(found.model(X), tiny().eval()(X))
    assert found.example is not None and found.how is not None and found.how.color == "gray"
    small = mb.prune(files / "tiny.pt2", X, macs=0.5, align=4)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in tiny().parameters())
    assert (
        mb.measure(files / "tiny.pt2", runs=2).macs == mb.measure(tiny(), inputs=X[:1], runs=2).macs
    )
    fitted = mb.fit(files / "tiny.pt2", [(X, torch.tensor([0, 1]))], lr=1e-3)
    assert fitted.training or not torch.equal(fitted(X), found.model(X))


def test_explain_takes_files_and_asks_for_open_sizes(files, tmp_path):
    assert "nothing can be pruned" not in str(mb.explain(files / "tiny.onnx"))
    assert mb.explain(files / "tiny.pt2").to_dict()["groups"]
    with pytest.raises(InputError, match="explain needs inputs"):
        mb.explain("tests.tiny:model")


def tampered(source: Path, target: Path, inner: str, change) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(inner) else content)
    return target


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("__import__('os').system('touch exploded')", "is no size; it could be code"),
        ("exec('1')", "is no size"),
        ("s0.__class__", "is no size"),
    ],
)
def test_sizes_that_are_code_are_refused(files, tmp_path, expression, words):
    def change(content: bytes) -> bytes:
        graph = json.loads(content)
        text = json.dumps(graph)
        found = json.loads(content)
        waiting = [found]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if "expr_str" in value:
                    value["expr_str"] = expression
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        assert json.dumps(found) != text
        return json.dumps(found).encode()

    path = tampered(files / "tiny.pt2", tmp_path / "a.pt2", "models/model.json", change)
    with pytest.raises(InputError, match=words):
        find(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("torch.ops.aten.relu.default", "torch.hub.load", "calls 'torch.hub.load'"),
        ('"name": "x"', '"name": "x=print(1)"', "is no name"),
        ('"name": "input"', '"name": "input=print(1)"', "is no name"),
    ],
)
def test_calls_and_names_that_are_code_are_refused(files, tmp_path, old, new, words):
    source = (files / "tiny.pt2").read_bytes()
    with zipfile.ZipFile(files / "tiny.pt2") as archive:
        graph = next(archive.read(n) for n in archive.namelist() if n.endswith("models/model.json"))
    if old.encode() not in graph:
        pytest.skip(f"this torch writes no {old}")
    assert source
    path = tampered(
        files / "tiny.pt2",
        tmp_path / "a.pt2",
        "models/model.json",
        lambda c: c.replace(old.encode(), new.encode()),
    )
    with pytest.raises(InputError, match=words):
        find(path)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_a_pickle_of_code_in_a_program_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    path = tampered(
        files / "tiny.pt2", tmp_path / "a.pt2", "sample_inputs/model.pt", lambda _: bomb
    )
    with pytest.raises(InputError, match="holds more than tensors"):
        find(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", np.random.default_rng(0).bytes(400)],
    ids=["empty", "cut", "noise"],
)
def test_damaged_programs(tmp_path, content):
    (tmp_path / "a.pt2").write_bytes(content)
    with pytest.raises(InputError, match="a.pt2 cannot be read"):
        find(tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "there is no network 'nothing'; expected"),
        ("gone.onnx", "gone.onnx is not there"),
        ("gone.pt2", "gone.pt2 is not there"),
        ("gone.safetensors", "name the network that they belong to"),
    ],
)
def test_names_of_nothing(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        find(name)


def test_folders_and_files_of_runtimes_say_what_they_are(files, tmp_path):
    mb.save(tiny(), tmp_path / "saved")
    with pytest.raises(InputError, match="holds what mb.save wrote.*--load"):
        find(tmp_path / "saved")
    (tmp_path / "model.tflite").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file for litert, which can be measured"):
        find(tmp_path / "model.tflite")


def test_torchvision_networks_say_their_preprocessing(tmp_path):
    pytest.importorskip("torchvision.models", exc_type=RuntimeError) if False else None
    vision = pytest.importorskip("mirabelle.sources.torchvision")
    try:
        vision.torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        find("torchvision:resnet181")
    found = find("torchvision:squeezenet1_1@none")
    assert (found.how.height, found.how.shorter) == (224, 256) and len(found.classes) == 1000
    assert found.how.mean == (0.485, 0.456, 0.406)
    other = torch.nn.Sequential(*[])
    assert other is not None
    weights = {k: v for k, v in found.model.state_dict().items()}
    weights["classifier.1.weight"] = torch.randn(7, 512, 1, 1)
    weights["classifier.1.bias"] = torch.randn(7)
    write_tensors(tmp_path / "w.safetensors", weights)
    seven = find(f"torchvision:squeezenet1_1@{tmp_path / 'w.safetensors'}")
    assert seven.model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_packages_that_are_not_installed_are_named():
    for name, package in (("timm:resnet18", "timm"), ("hf:a/b", "transformers")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(ImportError, match=rf"pip install 'mirabelle\[{package}\]'"):
                find(name)


def test_open_sizes_are_asked_for(tmp_path):
    network = Colors().eval()
    found = torch.onnx.export(
        network,
        (torch.randn(1, 3, 8, 8),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(
            {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},
        ),
    )
    found.save(tmp_path / "open.onnx")
    with pytest.raises(InputError, match=r"leaves the sizes of its inputs open: .*1,3,\?,\?"):
        mb.measure(tmp_path / "open.onnx")
    assert mb.measure(
        tmp_path / "open.onnx", inputs=np.zeros((1, 3, 9, 9), np.float32), runs=2
    ).macs
