"""What training refuses: data that are not finite, options out of range; and that it never returns
a network that is not finite.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import mirabelle as mb
from mirabelle.base.errors import CaptureError, InputError, MirabelleError
from tests.tiny import model, teacher


def pairs(count: int = 3) -> list:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 1, 8, 8, generator=g), torch.randint(0, 3, (4,), generator=g))
        for _ in range(count)
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25, -1e25])
@pytest.mark.parametrize("verb", ["fit", "distill"])
def test_inputs_that_are_not_finite_are_named(value, verb):
    data = pairs()
    data[1][0][2, 0, 3, 4] = value
    with pytest.raises(
        InputError, match=r"input 0 of batch 1 of the training loader.*\[2, 0, 3, 4\]"
    ):
        if verb == "fit":
            mb.fit(model(), data, lr=0.01)
        else:
            mb.distill(model(), teacher(), data, lr=0.01, losses={"mse": 1.0})


@pytest.mark.parametrize("row", range(4))
def test_they_are_named_where_some_are_held_back(row):
    data = pairs(8)
    data[5][0][row, 0, 3, 4] = math.nan
    for call in (lambda: mb.fit(model(), data), lambda: mb.distill(model(), teacher(), data)):
        with pytest.raises(InputError, match=rf"batch 5 of the training loader.*\[{row}, 0, 3, 4"):
            call()


def test_targets_that_are_not_finite_are_named():
    x = torch.randn(4, 3)
    targets = [torch.zeros(4, 2), torch.zeros(4, 2)]
    targets[1][3, 1] = math.nan
    with pytest.raises(InputError, match=r"the target of batch 1.*nan at index \[3, 1\]"):
        mb.fit(nn.Linear(3, 2), [(x, t) for t in targets], "mse", lr=0.01)


def test_samples_without_a_loss_are_said_before_training():
    """Labels of -100 are left out by torch's loss: of none but such it is NaN."""
    data = [(torch.randn(8, 3), torch.full((8,), -100)) for _ in range(3)]
    with pytest.raises(InputError, match="nan before any training.*labels are all -100"):
        mb.fit(nn.Linear(3, 2), data, steps=2)


def test_targets_that_are_no_class():
    with pytest.raises(InputError, match=r"target is 3 at index \[1\], and the network gives 2"):
        mb.fit(nn.Linear(3, 2), [(torch.randn(2, 3), torch.tensor([0, 3]))], lr=0.01)


@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_targets_of_another_shape_are_not_repeated(loss):
    with pytest.raises(InputError, match=r"shape \(4, 1\), and they are \(4,\)"):
        mb.fit(nn.Linear(3, 1), [(torch.randn(4, 3), torch.zeros(4))], loss, lr=0.01)


def test_no_network_is_returned_that_is_not_finite():
    """The only loss is finite, its gradient is not."""
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.fill_(0.0)
    data = [(torch.zeros(1, 2), torch.zeros(1, 1))]
    with pytest.raises(MirabelleError, match=r"training made weight NaN or infinite"):
        mb.fit(net, data, lambda o, t: o.abs().sqrt().sum(), lr=0.1, optimizer="sgd")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": -1.0}, "clip is -1.0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"patience": 0, "validation": pairs()}, "patience is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"ema": 1}, "ema is 1"),
        ({"warmup": 1.5}, "warmup"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"steps": 0}, "steps is 0"),
        ({"accumulate": 2.0}, "accumulate is 2.0"),
    ],
)
def test_options_out_of_range(options, words):
    x = torch.zeros(2, 1, 8, 8)
    for call in (
        lambda: mb.fit(model(), pairs(), **options),
        lambda: mb.distill(model(), teacher(), pairs(), **options),
        lambda: mb.prune(model().eval(), x, macs=0.7, align=1, data=pairs(), train=options),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_training_after_a_cut_that_returns_nothing():
    with pytest.raises(InputError, match="train returned a NoneType; expected the trained"):
        mb.prune(
            model().eval(),
            torch.zeros(2, 1, 8, 8),
            macs=0.7,
            align=1,
            data=pairs(),
            train=lambda net: None,
        )


# --- data of other kinds


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3, 4)))


def test_volumes_are_trained_and_distilled():
    data = [(torch.randn(4, 1, 4, 4, 4), torch.tensor([0, 1, 0, 1]))] * 2
    trained = mb.fit(Volumes(), data, lr=0.01)
    student = mb.distill(Volumes(), trained, data, lr=0.01)
    assert student.conv.weight.shape == (4, 1, 3, 3, 3)


class Stream(IterableDataset):
    """So many samples, or no end of them; it does not say how many."""

    def __init__(self, count: int | None):
        self.count = count

    def __iter__(self):
        i = 0
        while self.count is None or i < self.count:
            x = torch.full((3,), float(i % 3)) + torch.arange(3.0)
            yield x, i % 2
            i += 1


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_streams_without_a_length():
    torch.manual_seed(0)
    net, options = nn.Linear(3, 2), {"lr": 0.1, "precision": "float32"}
    known = list(DataLoader(Stream(10), batch_size=4))
    stream = DataLoader(Stream(10), batch_size=4)
    assert same(mb.fit(net, stream, epochs=2, **options), mb.fit(net, known, epochs=2, **options))
    assert same(
        mb.distill(net, net, stream, losses={"mse": 1.0}, epochs=2, **options),
        mb.distill(net, net, known, losses={"mse": 1.0}, epochs=2, **options),
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_endless_streams_with_steps(accumulate):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    options = {"lr": 0.1, "precision": "float32", "steps": 3, "accumulate": accumulate}
    known = list(DataLoader(Stream(12 * accumulate), batch_size=4))
    endless = DataLoader(Stream(None), batch_size=4)
    assert same(mb.fit(net, endless, **options), mb.fit(net, known, **options))
    taught = {"losses": {"kd": 1.0}, **options}
    teaches = nn.Linear(3, 2)
    assert same(
        mb.distill(net, teaches, endless, **taught), mb.distill(net, teaches, known, **taught)
    )


def test_endless_streams_without_steps_are_refused(monkeypatch):
    monkeypatch.setattr("mirabelle.base.data.MOST_BATCHES", 50)
    with pytest.raises(InputError, match="does not end within 50 batches; say with steps="):
        mb.fit(nn.Linear(3, 2), DataLoader(Stream(None), batch_size=4), lr=0.1)


def test_a_loader_that_only_iterates():
    class Plain:
        def __iter__(self):
            return iter(pairs())

    options = {"lr": 0.1, "epochs": 2}
    assert same(mb.fit(model(), Plain(), **options), mb.fit(model(), pairs(), **options))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "binary_cross_entropy"])
def test_labels_of_narrow_integers(kind, loss):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    target = torch.tensor([0, 1, 1, 0]) if loss == "cross_entropy" else torch.ones(4, 2)
    wide = target if loss == "cross_entropy" else target.float()
    narrow = mb.fit(net, [(x, target.to(kind))], loss, lr=0.1)
    assert same(narrow, mb.fit(net, [(x, wide)], loss, lr=0.1))
    if loss == "cross_entropy":
        losses = {"decoupled_kd": 1.0, "labels": 1.0}
        mb.distill(net, nn.Linear(3, 2), [(x, target.to(kind))], losses=losses, lr=0.1)


def test_arrays_backwards_of_other_byte_order_or_read_only():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    y = np.array([0, 1, 1, 0])
    expected = mb.fit(net, [(x, y)], lr=0.1)
    frozen = x.copy()
    frozen.flags.writeable = False
    for odd, labels in (
        (x[::-1].copy()[::-1], y[::-1].copy()[::-1]),
        (x.astype(">f4"), y.astype(">i8")),
        (np.asfortranarray(x), y.astype(np.int32)),
        (frozen, y),
    ):
        assert same(mb.fit(net, [(odd, labels)], lr=0.1), expected)


def test_frozen_parts_stay_as_they_are():
    """The statistics of a frozen BatchNorm too: who freezes a layer wants what it computes."""
    net = model()
    net[1].running_mean.fill_(0.3)
    net[:2].requires_grad_(False)
    for trained in (
        mb.fit(net, pairs(), lr=0.1),
        mb.distill(net, teacher(), pairs(), lr=0.1, losses={"mse": 1.0}),
    ):
        for name, tensor in net[:2].state_dict().items():
            assert torch.equal(trained[:2].state_dict()[name], tensor), name
        assert not torch.equal(trained[3].weight, net[3].weight)
        assert not torch.equal(trained[4].running_mean, net[4].running_mean)


def test_losses_without_a_gradient_are_named():
    with pytest.raises(InputError, match="loss of batch 0 of the training loader has no gradient"):
        mb.fit(model(), pairs(), lambda o, t: o.detach().sum(), steps=1, lr=0.1)


def test_what_cannot_be_derived_is_named():
    """Writing over what the gradient needs fails behind forward."""

    class Erases(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            x.zero_()
            return y

    with pytest.raises(InputError, match="does not run on batch 0 .*modified by an inplace"):
        data = [(torch.ones(2, 3), torch.tensor([0, 1]))]
        # in mixed precision the layer reads a copy
        mb.fit(Erases(3, 2), data, steps=1, lr=0.1, precision="float32")


def test_outputs_that_the_last_step_made_infinite():
    """Weights that are finite can have outputs that are not, and no loss has seen them."""
    data = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(MirabelleError, match=r"outputs NaN or infinite by step 1 of 1.*lower them"):
        mb.fit(net, data, steps=1, lr=1e-3, weight_decay=1e21)


@pytest.mark.parametrize(
    "verb",
    [
        lambda m, d: mb.fit(m, d, steps=1, lr=0.1),
        lambda m, d: mb.distill(m, nn.Linear(3, 2), d, steps=1, lr=0.1),
        lambda m, d: mb.measure(m, d),
    ],
)
def test_networks_without_code_or_values(verb):
    """They failed in torch: parameters that are no leaves, values that cannot be read."""
    data = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(CaptureError, match="is scripted or traced, .*load_state_dict"):
        verb(torch.jit.script(nn.Sequential(nn.Linear(3, 2))), data)
    with pytest.raises(InputError, match="weight has no values, as it is on the device meta"):
        verb(nn.Linear(3, 2, device="meta"), data)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda o, t: None, "a NoneType"),
        (lambda o, t: 1.0, "a float"),
        (lambda o, t: o, r"a tensor \(4, 3\)"),
        (lambda o, t: torch.complex(o.sum(), o.sum()), r"a complex tensor \(\)"),
    ],
)
def test_losses_that_are_no_number(loss, what):
    for call in (
        lambda: mb.fit(model(), pairs(), loss, steps=1, lr=0.1),
        lambda: mb.fit(model(), pairs(), loss),
        lambda: mb.distill(
            model(), teacher(), pairs(), losses={"labels": 1.0}, label_loss=loss, steps=1, lr=0.1
        ),
    ):
        with pytest.raises(InputError, match=f"loss returned {what}; expected a tensor of one"):
            call()


def test_statistics_of_huge_inputs_are_refused():
    data = [torch.randn(8, 4), torch.full((8, 4), 1e25)]
    with pytest.raises(InputError, match=r"batch 1 of data is 1e\+25 .*at most 1.8e\+18"):
        mb.factorize(nn.Sequential(nn.Linear(4, 32), nn.Linear(32, 4)), data[0], rank=2, data=data)
