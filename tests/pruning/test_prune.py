"""Pruning as a whole: errors, determinism, a part of a network, cutting and training in turn."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mirabelle.base.errors import CaptureError, InputError, MirabelleWarning
from mirabelle.channels.explain import explain
from mirabelle.measurement import count_macs
from mirabelle.pruning import prune
from tests.modules import Head, Net, conv_bn, image
from tests.networks import make
from tests.pruning.labeled import labeled


def never(*_):
    raise AssertionError("work was started")


def wrong(kind: str) -> dict:
    model, x = make("plain", torch.float32)
    arguments = {
        "model": model,
        "inputs": x,
        "macs": 0.5,
        "criterion": "taylor",
        "data": labeled(),
        "align": 1,
        "loss": never,
    }
    if kind == "nan":
        model.b[0].weight.data[0, 0, 0, 0] = float("nan")
    return arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.randn(2, 4, 8, 8)}, r"\(2, 4, 8, 8\)"),
        ({"inputs": "image.png"}, "example input is a str"),
        ({"model": "resnet50"}, "there is no network 'resnet50'; expected a torch.nn.Module"),
        ({"model": torch.relu}, "expected a torch.nn.Module"),
        ({"macs": 0}, "macs is 0; expected a number above 0 and at most 1"),
        ({"macs": 1.5}, "macs is 1.5"),
        ({"macs": True}, "macs is True"),
        ({"macs": "half"}, "macs is 'half'"),
        ({"macs": float("nan")}, "macs is nan"),
        ({"params": 0.5}, "exactly one budget.*macs, params"),
        ({"macs": None}, "exactly one budget.*none"),
        ({"align": 0}, "align is 0; expected a positive integer"),
        ({"align": 1.5}, "align is 1.5"),
        ({"samples": 0}, "samples is 0"),
        ({"least": 0}, "least is 0"),
        ({"keep": ["aa"]}, r"'aa'.*did you mean 'a'"),
        ({"repair": "bm"}, "repair is 'bm'.*bn"),
        ({"allocation": "globl"}, "did you mean 'global'"),
        ({"normalize": "means"}, "normalize is 'means'.*mean"),
        ({"aggregate": "summ"}, "aggregate is 'summ'.*sum"),
        ({"loss": "cross entropi"}, "loss is 'cross entropi'.*did you mean 'cross_entropy'"),
        ({"loss": 3}, r"loss is 3; expected one of cross_entropy, .* or a callable"),
        ({"rounds": 0}, "rounds is 0.*the number of cuts"),
        ({"rounds": 1.5}, "rounds is 1.5"),
        ({"train": 3}, "train is 3; expected options of training"),
        ({"train": {"epoch": 1}}, "train is .*unknown option 'epoch'; did you mean 'epochs'"),
        ({"train": {"epochs": 1}, "data": None, "criterion": "l1"}, "train= needs data="),
        ({"rounds": 2, "part": "a", "criterion": "l1"}, "a part is cut in one round"),
        ({"data": None}, "needs data="),
        ({"data": []}, "data yielded no batch"),
        ({"data": iter(labeled()), "train": {"epochs": 1}}, "read only once"),
        ({"data": iter([]), "repair": None}, "exhausted iterator"),
        ({"data": [x for x, _ in labeled()]}, "has no target"),
        (
            {"data": [(torch.randn(2, 4, 8, 8), torch.zeros(2).long())]},
            r"batch 0 of data.*\(2, 4, 8, 8\)",
        ),
        ({"data": [(image(), torch.zeros(3).long())], "loss": None}, "batch 0 of data.*batch"),
        (
            {"data": [(image() * float("nan"), torch.zeros(2).long())], "loss": None},
            "batch 0 of data is nan",
        ),
        (
            {"model": Net(lambda s, x: s.head(x.cumsum(1)), head=Head(3))},
            "no channel of this network can be pruned.*own input",
        ),
        (
            {"model": nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 2, 3))},
            "weights of 0 are computed: .*remove_parametrizations makes parameters of them",
        ),
    ],
)
def test_errors(changes, message):
    with pytest.raises(InputError, match=message):
        prune(**(wrong("") | changes))


def test_losses_have_names():
    model, options = (
        make("plain", torch.float32)[0],
        {"macs": 0.6, "criterion": "taylor", "data": labeled(), "align": 1, "repair": None},
    )
    one, other = (prune(model, image(), loss=loss, **options) for loss in ("cross_entropy", None))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_that_are_nan():
    with pytest.raises(InputError, match=r"b\.0\.weight holds 1 of 864"):
        prune(**wrong("nan"))
    with pytest.raises(InputError, match=r"b\.0\.weight"):
        explain(wrong("nan")["model"], image())


def test_masks_of_minus_infinity_are_no_error():
    model, x = make("plain", torch.float32)
    model.register_buffer("mask", torch.full((2, 2), -float("inf")))
    prune(model, x, macs=0.5, criterion="l1", align=1)


def test_a_bare_name_is_one_name():
    model, x = make("plain", torch.float32)
    assert prune(model, x, params=0.7, criterion="l1", align=1, keep="a").a[0].out_channels == 8


def test_sizes_written_into_forward():
    model = Net(
        lambda s, x: s.fc(s.a(x).view(-1, 8 * 8 * 8)), a=conv_bn(3, 8), fc=nn.Linear(512, 3)
    )
    small = prune(model, image(), macs=0.5, criterion="l1", align=1)
    assert small(image(5)).shape == (5, 3) and count_macs(small, image()) <= 0.5 * count_macs(
        model, image()
    )


class Detector(nn.Module):
    """As a detector with its suppression inside: how many boxes there are depends on the data, and
    `torch.export` refuses.
    """

    def __init__(self):
        super().__init__()
        self.backbone = Net(
            lambda s, x: s.b(torch.relu(s.a(x))), a=conv_bn(3, 16), b=conv_bn(16, 4)
        )
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.head(self.backbone(x))
        return y[:, :, :4] if y.sum() > 0 else y[:, :, :2]


def test_a_part_of_a_network_that_cannot_be_captured():
    torch.manual_seed(0)
    model = Detector().train()
    with pytest.raises(CaptureError, match="if y.sum"):
        prune(model, image(), macs=0.5, criterion="l2")
    data = [x for x, _ in labeled()]
    small = prune(
        model,
        image(),
        macs=0.5,
        criterion="brain_surgeon",
        data=data,
        samples=16,
        align=1,
        part="backbone",
        repair="least-squares",
    )
    assert (
        type(small) is Detector
        and small.training
        and small.backbone.training
        and small.backbone.a[0].out_channels == 8
    )
    assert (
        small.head.weight.shape == model.head.weight.shape
        and model.backbone.a[0].out_channels == 16
    )
    small.eval()(image(5))
    for options, words in [
        ({"part": "backbon"}, "did you mean 'backbone'"),
        (
            {"part": "backbone", "criterion": "taylor", "data": labeled()},
            "loss of the whole network",
        ),
    ]:
        with pytest.raises(InputError, match=words):
            prune(model, image(), **{"macs": 0.5, "criterion": "l2", **options})


@pytest.mark.parametrize("criterion", ["taylor", "random"])
def test_the_same_seed_gives_the_same_bytes(criterion):
    model, x = make("dense", torch.float32)
    loader = torch.utils.data.DataLoader(
        list(itertools.chain(*(zip(a, b, strict=True) for a, b in labeled()))), 6, shuffle=True
    )
    runs = [
        prune(model, x, macs=0.5, criterion=criterion, data=loader, align=1, seed=s).state_dict()
        for s in (3, 3, 4)
    ]
    assert runs[0].keys() == runs[1].keys() and all(
        torch.equal(v, runs[1][k]) for k, v in runs[0].items()
    )
    assert any(
        v.shape != runs[2][k].shape or not torch.equal(v, runs[2][k]) for k, v in runs[0].items()
    )


def test_an_explanation_is_json():
    model, x = make("dense")
    assert json.loads(json.dumps(explain(model, x).to_dict()))["groups"][0]["channels"] == 6


def test_cutting_and_training_in_turn():
    model, x = make("residual", torch.float32)
    data, seen = labeled(), []

    def tune(small):
        seen.append(count_macs(small, x) / count_macs(model, x))
        return small

    prune(model, x, macs=0.49, criterion="l1", align=1, rounds=2, train=tune)
    assert len(seen) == 2 and 0.6 < seen[0] <= 0.7 and 0.4 < seen[1] <= 0.49
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = prune(
        model,
        x,
        macs=0.6,
        data=data,
        samples=16,
        align=1,
        rounds=2,
        train={"epochs": 1, "lr": 1e-3},
    )
    assert count_macs(small, x) <= 0.6 * count_macs(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("network", ["residual", "chunk, one part changed"])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, network):
    model, x = make(network, torch.float32)
    data = labeled(size=x.shape[-1])
    options = {
        "macs": 0.6,
        "data": data,
        "samples": 16,
        "align": 1,
        "rounds": 2,
        "train": {"epochs": 1, "lr": 1e-3},
    }
    expected = prune(model, x, **options)

    class KilledError(BaseException):  # as a signal's: no code takes it for an error of the data
        pass

    def read(loader, left):
        for batch in loader:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            yield batch

    class Loader:
        def __init__(self, left):
            self.left = [left]

        def __iter__(self):
            return read(data, self.left)

        def __len__(self):
            return len(data)

    done = False
    for left in (6, 8, 12, 10**6):  # the criterion, the repair and training each read the data
        try:
            found = prune(model, x, **{**options, "data": Loader(left)}, checkpoint=tmp_path)
            done = True
        except KilledError:
            assert not done
    assert (tmp_path / "step2-trained.safetensors").is_file()
    for k, v in expected.state_dict().items():
        assert torch.equal(v, found.state_dict()[k]), k
    with pytest.raises(InputError, match="belongs to another run, which differs in"):
        prune(model, x, **{**options, "macs": 0.5}, checkpoint=tmp_path)


def test_a_way_of_saving_that_knows_no_other_sizes_is_warned_of():
    """Hugging Face's: from_pretrained builds the network from its config."""
    model, x = make("plain", torch.float32)
    model.save_pretrained = never
    with pytest.warns(MirabelleWarning, match=r"mb\.save\(network, folder\)"):
        small = prune(model, x, macs=0.7, align=1)
    assert count_macs(small, x) < count_macs(model, x)
