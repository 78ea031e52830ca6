"""What loaders may yield, named functions, and files that are whole or not there."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mirabelle.base.checks import check_network, check_runs, clone
from mirabelle.base.data import (
    Batch,
    as_batch,
    batches,
    cache_folder,
    example_inputs,
    length_of,
    pieces,
    samples,
    seed_everything,
)
from mirabelle.base.errors import InputError
from mirabelle.base.files import (
    atomic,
    content_hash,
    read_json,
    read_tensors,
    sha256,
    write_json,
    write_tensors,
    write_text,
)
from mirabelle.base.names import load, resolve

X, Y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2])


# --- batches
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [X, X.numpy(), (X,), [X]])
def test_inputs_alone(item):
    batch = as_batch(item)
    assert (
        torch.equal(batch.args[0], X)
        and len(batch.args) == 1
        and batch.kwargs == {}
        and batch.target is None
        and batch.size == 3
    )


@pytest.mark.parametrize("item", [(X, Y), [X.numpy(), Y.numpy()], (X.numpy(), Y)])
def test_inputs_and_target(item):
    batch = as_batch(item)
    assert torch.equal(batch.args[0], X) and torch.equal(batch.target, Y)


def test_several_inputs():
    assert len(as_batch(((X, X), Y)).args) == 2
    batch = as_batch(({"a": X, "b": X.numpy()}, Y))
    assert (
        batch.args == ()
        and list(batch.kwargs) == ["a", "b"]
        and len(batch.tensors) == 2
        and torch.equal(batch.target, Y)
    )
    assert as_batch({"a": X}).target is None
    assert as_batch(batch) is batch
    assert [t.shape for t in batch.map(lambda t: t[:1]).tensors] == [
        (1, 2),
        (1, 2),
    ] and batch.size == 3


def test_example_inputs_are_never_labeled():
    assert len(example_inputs((X, Y)).args) == 2 and example_inputs((X, Y)).target is None
    assert torch.equal(example_inputs(X.numpy()).args[0], X) and list(
        example_inputs({"x": X}).kwargs
    ) == ["x"]
    with pytest.raises(InputError, match="example input 1 is a str"):
        example_inputs((X, "y"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("x", "batch is a str; expected a tensor"),
        (None, "NoneType"),
        ((X, Y, Y), "tuple of 3 parts"),
        ({"a": 1}, r"\['a'\] is a int"),
        ((), "0 parts"),
    ],
)
def test_batches_that_are_none(item, message):
    with pytest.raises(InputError, match=message):
        as_batch(item)


def test_a_batch_without_samples():
    for item in (torch.empty(0, 2), torch.tensor(1.0), {}):
        with pytest.raises(InputError, match=r"no samples|no input"):
            list(batches([item]))


def test_inputs_without_a_dimension_belong_to_every_sample():
    batch = as_batch(({"scale": torch.tensor(2.0), "x": X, "state": torch.zeros(2, 1)}, Y))
    assert batch.size == 3
    first = batch.head(2)
    assert first.size == 2 and len(first.kwargs["state"]) == 2 == len(batch.head(1).kwargs["state"])
    assert first.kwargs["scale"] == 2 and torch.equal(first.target, Y[:2])
    with pytest.raises(InputError, match="no samples"):
        as_batch({"scale": torch.tensor(2.0)})


def test_batches():
    assert len(list(batches([X] * 5))) == 5 and len(list(batches([X] * 5, 2))) == 2
    assert len(list(batches([(X, Y)], labeled=True))) == 1
    with pytest.raises(InputError, match="batch 1 of train has no target"):
        list(batches([(X, Y), X], labeled=True, what="train"))
    with pytest.raises(InputError, match="train yielded no batch"):
        list(batches([], what="train"))
    iterator = iter([X])
    assert len(list(batches(iterator))) == 1
    with pytest.raises(InputError, match="not an exhausted iterator"):
        list(batches(iterator))
    with pytest.raises(InputError, match=r"train is a int.*loader"):
        list(batches(7, what="train"))


def test_batches_reads_no_more_than_its_limit():
    seen = []
    loader = (seen.append(i) or X for i in range(10))
    list(batches(loader, 3))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (100, [3, 3, 3])]
)
def test_samples(count, sizes):
    found = list(samples([(X, Y)] * 3, count))
    assert [b.size for b in found] == sizes == [len(b.target) for b in found]
    assert torch.equal(found[-1].args[0], X[: sizes[-1]])


@pytest.mark.parametrize(
    ("numbers", "sizes"), [(1, [1] * 7), (12, [2, 2, 1, 2]), (18, [3, 2, 2]), (1000, [5, 2])]
)
def test_pieces(numbers, sizes):
    """Two inputs of 2 and 4 numbers for each sample, one that belongs to all, and a target."""
    whole = [
        Batch(
            (torch.arange(10.0).view(5, 2), torch.tensor(3.0)),
            {"b": torch.ones(5, 2, 2)},
            torch.arange(5),
        )
    ]
    whole.append(Batch((torch.zeros(2, 2), torch.tensor(3.0)), {"b": torch.ones(2, 2, 2)}, None))
    found = list(pieces(whole, numbers))
    assert [b.size for b in found] == sizes and all(
        b.args[1] == 3 and len(b.kwargs["b"]) == b.size for b in found
    )
    assert torch.equal(torch.cat([b.args[0] for b in found])[:5], whole[0].args[0])
    assert (
        torch.cat([b.target for b in found if b.target is not None]).tolist() == list(range(5))
        and found[-1].target is None
    )


def test_seeds():
    def draw():
        import random

        return random.random(), np.random.rand(), torch.rand(1).item()

    for seed in (0, 2**40):
        seed_everything(seed)
        first = draw()
        seed_everything(seed)
        assert draw() == first


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MIRABELLE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MIRABELLE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mirabelle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mirabelle"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "mirabelle"


# --- checks
# --------------------------------------------------------------------------------------------------


def test_check_network():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert check_network(model) is model
    model[0].bias.data[1] = math.inf
    with pytest.raises(InputError, match=r"teacher: 0\.bias holds 1 of 2 values"):
        check_network(model, "teacher")
    model[0].bias.data[1] = 0
    model[1].running_var[0] = math.nan
    with pytest.raises(InputError, match=r"1\.running_var holds 1 of 2"):
        check_network(model)
    with pytest.raises(InputError, match="student is a int"):
        check_network(7, "student")


def test_check_runs_leaves_the_mode_and_says_the_shapes():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    model[1].eval()
    out = check_runs(model, Batch((X,), {}, None), "the example")
    assert torch.equal(out, model[1](X)) and not out.requires_grad
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    with pytest.raises(
        InputError,
        match=r"does not run on the example \(inputs: \(2, 3\) float32\): RuntimeError: ",
    ):
        check_runs(model, Batch((X.T,), {}, None), "the example")
    assert model[0].training


def test_a_clone_shares_nothing():
    model = torch.nn.Linear(2, 2)
    model(X).sum().backward()
    copied = clone(model)
    assert copied.weight.grad is None and model.weight.grad is not None
    copied.weight.data.zero_()
    assert bool(model.weight.any())


# --- names of functions
# --------------------------------------------------------------------------------------------------


def test_names_of_functions():
    table = {"square": math.sqrt}
    assert resolve("square", table, "criterion") is math.sqrt
    assert resolve("math:floor", table, "criterion") is math.floor
    assert resolve(math.ceil, table, "criterion") is math.ceil
    for name, message in [
        ("sqare", "unknown criterion 'sqare'; did you mean 'square'"),
        ("math:flor", "did you mean 'floor'"),
        ("no.where:f", "no module 'no'"),
    ]:
        with pytest.raises(InputError, match=message):
            resolve(name, table, "criterion")


@pytest.mark.parametrize("name", [":f", "math:", "math.floor:", "math:pi", "."])
def test_references_that_are_none(name):
    with pytest.raises(InputError, match="criterion"):
        resolve(name, {}, "criterion")


def test_a_module_that_fails(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="importing broken_plugin failed: ZeroDivisionError"):
        load("broken_plugin:f", "criterion")


# --- files
# --------------------------------------------------------------------------------------------------


def test_atomic_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old" and temporary.parent == path.parent
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file.json"]
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(path.parent) == ["file.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [0.1, None]})
    assert read_json(path) == {"b": 1, "a": [0.1, None]} and path.read_text().index(
        '"a"'
    ) < path.read_text().index('"b"')
    with pytest.raises(ValueError):
        write_json(path, {"x": math.nan})
    assert read_json(path)["b"] == 1
    for damaged in ('{"a": ', "", "\xff"):
        path.write_bytes(damaged.encode("latin-1"))
        with pytest.raises(InputError, match=r"a\.json is not JSON"):
            read_json(path)
    with pytest.raises(InputError, match="is not there"):
        read_json(tmp_path / "none.json")


def test_tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    base = torch.randn(4, 4)
    write_tensors(path, {"a": base, "shared": base, "view": base.T, "int": Y}, {"note": "é"})
    tensors, metadata = read_tensors(path)
    assert (
        metadata == {"note": "é"}
        and torch.equal(tensors["view"], base.T)
        and torch.equal(tensors["shared"], base)
        and torch.equal(tensors["int"], Y)
    )
    first = sha256(path)
    write_tensors(path, {"a": base, "shared": base, "view": base.T, "int": Y}, {"note": "é"})
    assert sha256(path) == first
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:20], b"", b"\xff" * 100, json.dumps({}).encode()):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"w\.safetensors is not a whole safetensors file"):
            read_tensors(path)
    with pytest.raises(InputError, match="is not there"):
        read_tensors(tmp_path / "none.safetensors")


def test_tensors_that_do_not_fit_the_disk(tmp_path):
    """A limit on the size of files is to a process what a full disk is."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": Y})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"w\.safetensors could not be written"):
            write_tensors(path, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(read_tensors(path)[0]["a"], Y) and os.listdir(tmp_path) == ["w.safetensors"]


def test_content_hash():
    assert (
        content_hash({"a": 1, "b": [2]})
        == content_hash({"b": [2], "a": 1})
        != content_hash({"a": 1, "b": [3]})
    )
    assert len(content_hash(None)) == 64


class _Named(torch.Tensor):
    pass


def test_tensors_become_plain():
    x = torch.randn(2, 3)
    assert type(as_batch(x.as_subclass(_Named)).args[0]) is torch.Tensor
    with torch.inference_mode():
        made = x * 1
    assert not as_batch(made).args[0].is_inference()
    masked = np.ma.masked_array(x.numpy(), mask=np.zeros((2, 3)))
    assert torch.equal(as_batch(masked).args[0], x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(3).to_sparse(), "layout sparse_coo; give x.to_dense"),
        (np.ones((2, 3), np.longdouble), "which torch does not have; give x.astype"),
        (np.ma.masked_array(np.ones(3), mask=[0, 1, 0]), "has masked values"),
        (torch.ones(2, 3, device="meta"), "has no values, as it is on the device meta"),
    ],
)
def test_tensors_that_no_network_takes(value, message):
    with pytest.raises(InputError, match=f"batch 0 of the loader.*{message}"):
        list(batches([value]))


class _LengthFails(list):
    def __len__(self):
        raise RuntimeError("unknown")


def test_a_length_that_fails_is_none():
    assert length_of(_LengthFails([1])) is None
