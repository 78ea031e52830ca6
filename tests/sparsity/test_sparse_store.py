"""Sparse networks on disk: exact to the bit, small, and refused where damaged; zeros that survive
training, distillation, quantization and files.
"""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mirabelle as mb
from mirabelle.base.checks import clone
from mirabelle.base.compression_of_zeros import decode, encode
from mirabelle.base.errors import InputError
from mirabelle.base.files import SEAL, read_tensors, sealed, sha256, write_tensors
from mirabelle.sparsity import masks, share_of_zeros
from mirabelle.sparsity.gradual import Gradual
from tests.sparsity.nets import calibration, net
from tests.tiny import data, model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def zeros(network: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.clone() for n, m in masks.zeros(network).items()}


def still_zero(network: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(bool((network.get_parameter(n) == 0)[m].all()) for n, m in before.items())


# --- coding
# --------------------------------------------------------------------------------------------------


def test_gaps_by_hand():
    # Places 3 and 300 of 400: three empty ones, then 296 = 255 + 41.
    weight = torch.zeros(1, 400)
    weight[0, 3], weight[0, 300] = 1.5, -2.0
    parts = encode(weight, 1)
    assert (
        parts is not None
        and parts["gaps"].tolist() == [3, 255, 41]
        and parts["values"].flatten().tolist() == [1.5, -2.0]
    )
    # A block of two outputs is stored whole: (0, 5) and (1, 5) at place 5.
    weight = torch.zeros(2, 40)
    weight[1, 5] = 7.0
    parts = encode(weight, 2)
    assert (
        parts is not None
        and parts["gaps"].tolist() == [5]
        and parts["values"].tolist() == [[0.0, 7.0]]
    )
    # One in two: a bit for each place is shorter.
    parts = encode(torch.tensor([[0.0, 1.0] * 32]), 1)
    assert parts is not None and parts["bits"].tolist() == [0b10101010] * 8
    assert encode(torch.ones(2, 8), 1) is None  # nothing is gained


@settings(max_examples=80, deadline=None)
@given(
    outputs=st.integers(1, 9),
    columns=st.integers(1, 300),
    block=st.integers(1, 5),
    density=st.sampled_from([0.0, 0.001, 0.05, 0.3, 0.9]),
    seed=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_coding_is_exact(outputs, columns, block, density, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, columns, generator=generator).to(dtype)
    weight[torch.rand(outputs, columns, generator=generator) >= density] = 0.0
    parts = encode(weight, block)
    if parts is not None:
        assert (
            sum(t.numel() * t.element_size() for t in parts.values())
            < weight.numel() * weight.element_size()
        )
        back = decode(parts, (outputs, columns), block, "w")
        assert back.dtype == dtype and torch.equal(back, weight)


@pytest.mark.parametrize("block", [None, (4, 1)])
@pytest.mark.parametrize(("sparsity", "share"), [(0.95, 0.1), (0.9, 0.17)])
def test_files_are_small(tmp_path, block, sparsity, share):
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 64, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 1000),
    )
    sparse = mb.sparsify(dense, sparsity=sparsity, block=block)
    sizes = [
        (mb.save(n, tmp_path / str(i)) / "model.safetensors").stat().st_size
        for i, n in enumerate((dense, sparse))
    ]
    assert sizes[1] <= share * sizes[0]
    assert same(mb.load(tmp_path / "1", dense), sparse)


@pytest.mark.parametrize("sparsity", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("block", [None, (4, 1)])
def test_round_trip(tmp_path, sparsity, block):
    sparse = mb.sparsify(net(), sparsity=sparsity, block=block)
    back = mb.load(mb.save(sparse, tmp_path / "a"), net(1))
    assert same(back, sparse) and masks.blocks(back) == masks.blocks(sparse)
    mb.save(back, tmp_path / "b")
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes()
        for f in ("model.safetensors", "model.json")
    )
    trained = mb.fit(back, calibration(), epochs=2)
    assert still_zero(trained, zeros(sparse)) and not same(trained, sparse)


def test_weights_that_became_zero_or_negative_zero(tmp_path):
    sparse = mb.sparsify(net(), sparsity=0.6)
    with torch.no_grad():
        sparse.fc.weight.zero_()
        sparse.conv.weight.neg_()  # pruned ones are -0.0 now
    back = mb.load(mb.save(sparse, tmp_path), net())
    assert same(back, sparse) and not torch.signbit(back.conv.weight[back.conv.weight == 0]).any()


def test_damaged_files(tmp_path):
    sparse = mb.sparsify(net(), sparsity=0.95)
    mb.save(sparse, tmp_path)
    file, described = tmp_path / "model.safetensors", tmp_path / "model.json"
    good, text = file.read_bytes(), described.read_text()
    file.write_bytes(good[:-5] + b"12345")
    with pytest.raises(InputError, match="damaged or replaced"):
        mb.load(tmp_path, net())
    tensors, _ = read_tensors_of(good, file)
    name = "pointwise.weight"
    for change in (
        {f"{name}/values": tensors[f"{name}/values"][:-1]},  # a value is missing
        {
            f"{name}/gaps": torch.full((len(tensors[f"{name}/values"]),), 254, dtype=torch.uint8)
        },  # places beyond the end
        {f"{name}/values": tensors[f"{name}/values"].reshape(-1)},  # of another shape
    ):
        rewrite(tmp_path, {**tensors, **change}, text)
        with pytest.raises(
            InputError, match=r"pointwise\.weight in .* is damaged|describes no sparse weights"
        ):
            mb.load(tmp_path, net())
    rewrite(tmp_path, {k: v for k, v in tensors.items() if k != f"{name}/gaps"}, text)
    with pytest.raises(InputError, match="describes no sparse weights"):
        mb.load(tmp_path, net())
    file.write_bytes(good)
    for sparse_part in (
        3,
        {"pointwise.weight": 3},
        {"nowhere.weight": {"block": 1, "shape": [2, 2]}},
        {"pointwise.weight": {"block": 0, "shape": [10, 12, 1, 1]}},
    ):
        described.write_text(described_by(text, sparse=sparse_part))
        with pytest.raises(InputError):
            mb.load(tmp_path, net())


def read_tensors_of(content, path):
    path.write_bytes(content)
    return read_tensors(path)


def described_by(text, **changes):
    """`model.json` with changes, under a checksum that fits."""
    content = {k: v for k, v in json.loads(text).items() if k != SEAL}
    return json.dumps(sealed({**content, **changes}))


def rewrite(folder, tensors, text):
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "model.json").write_text(
        described_by(text, sha256=sha256(folder / "model.safetensors"))
    )


def test_no_pickle(tmp_path):
    mb.save(mb.sparsify(net(), sparsity=0.9), tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".md", ".safetensors"]
    assert not any(p.read_bytes().startswith((b"PK", b"\x80")) for p in tmp_path.iterdir())


# --- further steps
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"ema": 0.9},
        {"clip": 0.5, "accumulate": 2},
        {"precision": "bfloat16"},
    ],
)
def test_zeros_survive_training(options):
    sparse = mb.sparsify(net(), sparsity=0.7, block=(4, 1))
    before = zeros(sparse)
    trained = mb.fit(sparse, calibration(count=4), epochs=3, lr=0.05, **options)
    assert still_zero(trained, before) and masks.blocks(trained) == masks.blocks(sparse)
    after = {n: p for n, p in trained.named_parameters() if n in before}
    assert all(not torch.equal(p, sparse.get_parameter(n)) for n, p in after.items())


def test_clipping_counts_only_what_can_move():
    """A pruned weight with an enormous gradient leaves the step of the others as it is."""

    def step(huge):
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[1.0, 0.0]])
        masks.mark(layer, {"weight": 1})
        x = torch.tensor([[1.0, huge]])
        return mb.fit(
            layer,
            [(x, torch.zeros(1, 1))],
            loss="mse",
            steps=1,
            optimizer="sgd",
            lr=0.1,
            clip=1.0,
            weight_decay=0,
            schedule="constant",
            precision="float32",
        ).weight

    assert torch.equal(step(0.0), step(1000.0))


def test_zeros_survive_distillation_quantization_and_their_files(tmp_path):
    sparse = mb.sparsify(model(), sparsity=0.7, block=(4, 1))
    before = zeros(sparse)
    student = mb.distill(sparse, model(), data()[0], losses={"mse": 1.0}, steps=3)
    assert still_zero(student, before)
    q = mb.quantize(student, data()[1], samples=32)
    assert set(masks.blocks(q)) == set(before) and still_zero(q, before)
    trained = mb.fit(q, data()[0], steps=3)
    assert still_zero(trained, before)
    back = mb.load(mb.save(trained, tmp_path), model(3))
    assert same(back, trained) and still_zero(mb.fit(back, data()[0], steps=2), before)


def test_parts_of_a_network_and_networks_around_it_keep_the_zeros():
    sparse = mb.sparsify(net(), sparsity=0.7)
    around = nn.Sequential(nn.Identity(), sparse)
    trained = mb.fit(around, calibration(), epochs=1, lr=0.05)
    assert still_zero(trained[1], zeros(sparse)) and masks.blocks(clone(sparse.pointwise)) == {
        "weight": 1
    }


# --- sparsity that grows
# --------------------------------------------------------------------------------------------------


GROWS = {"sparsity": 0.8, "block": [4, 1], "cuts": 4, "end": 0.75}


def test_the_cuts_by_hand():
    gradual = Gradual(
        {"sparsity": 0.8, "start": 0.2, "end": 0.6, "cuts": 2}, net(), calibration(), 10, 0
    )
    # Cuts at the shares 1/2 and 1 between steps 2 and 6: 0.8 * (1 - 1/8) and 0.8.
    assert gradual.steps == {4: pytest.approx(0.7), 6: pytest.approx(0.8)}
    assert Gradual(
        {"sparsity": 0.8, "start": 1.0, "end": 1.0, "cuts": 3}, net(), calibration(), 10, 0
    ).steps == {9: pytest.approx(0.8)}
    assert Gradual({"sparsity": 0.5, "end": 0.0}, net(), calibration(), 1, 0).steps == {
        0: pytest.approx(0.5)
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"criterion": "taylor"},
        {"criterion": "obs", "samples": 32, "repair": "bn"},
        {"allocation": "erk", "cuts": 1},
    ],
)
@pytest.mark.parametrize("ema", [None, 0.8])
def test_sparsity_grows_while_training(options, ema):
    network = net()
    trained = mb.fit(
        network, calibration(count=4), epochs=3, lr=0.01, ema=ema, sparsify={**GROWS, **options}
    )
    found = share_of_zeros(trained)
    assert not masks.blocks(network)
    total = sum(v["zeros"] for v in found.values()) / sum(v["size"] for v in found.values())
    assert math.isclose(total, 0.8, abs_tol=0.04)  # blocks at the end of a layer are smaller
    assert all(v["block"] == 4 for v in found.values())
    for name in found:
        used = (trained.get_parameter(name) != 0).flatten(1)
        assert all(bool((rows == rows[:1]).all()) for rows in used.split(4))


def test_growing_and_resuming_give_the_same_weights(tmp_path, monkeypatch):
    options = {
        "epochs": 4,
        "lr": 0.01,
        "ema": 0.9,
        "seed": 3,
        "sparsify": {**GROWS, "criterion": "taylor", "samples": 32},
    }
    loader = data()[0]  # shuffles and augments
    whole = mb.fit(model(), loader, **options)

    class StoppedError(Exception):
        pass

    for stop in (2, 5, 7):  # in the middle of epochs, before and after cuts
        monkeypatch.setattr(Gradual, "before_step", stopping(stop, StoppedError))
        with pytest.raises(StoppedError):
            mb.fit(
                model(), loader, checkpoint=tmp_path / str(stop), checkpoint_seconds=0, **options
            )
        monkeypatch.undo()
        assert (tmp_path / str(stop) / "checkpoint.safetensors").is_file()
        resumed = mb.fit(
            model(), loader, checkpoint=tmp_path / str(stop), checkpoint_seconds=0, **options
        )
        assert same(resumed, whole) and masks.blocks(resumed) == masks.blocks(whole)
    with pytest.raises(InputError, match="belongs to another run"):
        mb.fit(model(), loader, checkpoint=tmp_path / "5", **{**options, "sparsify": GROWS})


def stopping(at, error):
    original = Gradual.before_step

    def before_step(self, network, done):
        if done == at:
            raise error
        return original(self, network, done)

    return before_step


def test_cuts_leave_the_order_of_the_data_alone():
    """What a cut reads draws nothing from the generators of the training: keeping everything trains
    as without.
    """
    loader = data()[0]
    plain = mb.fit(model(), loader, epochs=2)
    spied = mb.fit(
        model(),
        loader,
        epochs=2,
        sparsify={"sparsity": 1e-6, "criterion": "taylor", "cuts": 3, "samples": 32},
    )
    assert same(plain, spied)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (0.9, "expected options of mb.sparsify"),
        ({}, "it needs sparsity"),
        ({"sparsity": 0.9, "blok": (4, 1)}, "unknown option 'blok'; did you mean 'block'"),
        ({"sparsity": 2}, "sparsity is 2; expected a number above 0 and below 1"),
        ({"sparsity": 0.9, "start": 0.5, "end": 0.2}, "start=0.5, end=0.2"),
        ({"sparsity": 0.9, "cuts": 0}, "cuts is 0"),
        ({"sparsity": 0.9, "rounds": 2}, "unknown option 'rounds'"),
        ({"sparsity": 0.9, "keep": ["nowhere"]}, "keep names 'nowhere'"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError, match=words):
        mb.fit(net(), calibration(), sparsify=options)


def test_a_loader_that_cannot_be_read_twice_at_once():
    loader = calibration()

    class Persistent(list):
        persistent_workers = True

    with pytest.raises(InputError, match="persistent_workers cannot give; name another loader"):
        mb.fit(net(), Persistent(loader), sparsify={"sparsity": 0.5, "criterion": "taylor"})
    mb.fit(net(), Persistent(loader), sparsify={"sparsity": 0.5})
    mb.fit(
        net(), Persistent(loader), sparsify={"sparsity": 0.5, "criterion": "taylor", "data": loader}
    )
