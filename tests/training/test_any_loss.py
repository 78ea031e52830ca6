"""Losses of outputs and targets of any form, and of networks that compute it themselves."""

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.fitting.gradients import StepLoss, loss_gradients


class Detector(nn.Module):
    """In training mode it takes targets and gives losses, else predictions, as detectors do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.more = nn.Conv2d(16, 16, 3, padding=1)
        self.box, self.kind = nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, x, targets=None):
        h = self.more(self.body(x)).relu().mean((2, 3))
        found = {"boxes": self.box(h), "kinds": self.kind(h)}
        if targets is None:
            return found
        assert self.training
        boxes = torch.stack([t["box"] for t in targets])
        kinds = torch.stack([t["kind"] for t in targets])
        return {
            "box": (found["boxes"] - boxes).abs().mean(),
            "kind": nn.functional.cross_entropy(found["kinds"], kinds),
        }


def step(network, batch):
    return network(*batch.args, targets=batch.target)


def by_hand(output, target):
    boxes = torch.stack([t["box"] for t in target])
    kinds = torch.stack([t["kind"] for t in target])
    return (output["boxes"] - boxes).abs().mean() + nn.functional.cross_entropy(
        output["kinds"], kinds
    )


def _data(count=5, size=6):
    g = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        n = size - i % 2  # of unequal size
        x = torch.randn(n, 1, 8, 8, generator=g)
        found.append(
            (
                x,
                [
                    {"box": x[k, 0, :2, :2].flatten(), "kind": (x[k].mean() > 0).long()}
                    for k in range(n)
                ],
            )
        )
    return found


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return Detector().eval()


def test_a_step_and_a_loss_of_the_same_train_alike(detector):
    options = {"epochs": 2, "lr": 1e-3, "holdout": 0.0, "batchnorm": "freeze"}
    one = mb.fit(detector, _data(), step=step, **options)
    other = mb.fit(detector, _data(), by_hand, **options)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(one.get_parameter("box.weight"), detector.box.weight)


def test_training_decides_for_itself_with_a_step(detector):
    trained = mb.fit(detector, _data(12, 8), step=step, epochs=4)
    data = _data(12, 8)
    with torch.no_grad():
        before, after = (
            sum(float(by_hand(m(x), t)) for x, t in data) for m in (detector, trained.eval())
        )
    assert after < 0.9 * before


def test_channels_are_scored_and_trained_by_a_step(detector):
    x = _data()[0][0]
    small = mb.prune(
        detector, x, macs=0.6, data=_data(), criterion="taylor", step=step, train={"epochs": 1}
    )
    same = mb.prune(detector, x, macs=0.6, data=_data(), criterion="taylor", loss=by_hand)
    assert (
        len(small.get_parameter("body.0.weight")) == len(same.get_parameter("body.0.weight")) < 16
    )
    sparse = mb.sparsify(
        detector, sparsity=0.5, data=_data(), criterion="taylor", step=step, repair=None
    )
    assert float((sparse.get_parameter("more.weight") == 0).float().mean()) > 0.3


def test_distillation_takes_the_loss_of_a_step(detector):
    """With the batch's own statistics frozen, a second pass of the student changes nothing."""
    options = {"epochs": 2, "lr": 1e-3, "holdout": 0.0, "batchnorm": "freeze"}
    options["precision"] = "float32"  # two passes round alike
    losses = {"mse": 0.5, "labels": 1.0}
    teacher = Detector().eval()

    def boxes(output, target):
        return (output - torch.stack([t["box"] for t in target])).abs().mean()

    def own(network, batch):
        assert network.training
        return boxes(network(*batch.args)["boxes"], batch.target)

    one = mb.distill(detector, teacher, _data(), losses=losses, step=own, **options)
    other = mb.distill(detector, teacher, _data(), losses=losses, label_loss=boxes, **options)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    alone = mb.distill(detector, teacher, _data(), losses={"mse": 0.5}, **options)
    weights = [m.get_parameter("box.weight") for m in (one, alone)]
    assert not torch.equal(*weights)


def test_distillation_judges_a_step_on_data_held_back(detector):
    trained = mb.distill(
        detector, Detector().eval(), _data(8), losses={"mse": 1.0, "labels": 1.0}, step=step
    )
    assert not trained.training and detector.body[1].num_batches_tracked == 0


def test_what_distillation_cannot_do_with_a_step_is_said(detector):
    teacher = Detector().eval()
    with pytest.raises(InputError, match="the loss that losses calls labels"):
        mb.distill(detector, teacher, _data(), losses={"mse": 1.0}, step=step, lr=0.1)
    with pytest.raises(InputError, match="does not run on the first training batch"):
        mb.distill(
            detector,
            teacher,
            _data(),
            losses={"mse": 1.0, "labels": 1.0},
            step=lambda network, batch: network(batch.nothing),
            lr=0.1,
        )


def test_gradients_of_a_step_leave_statistics_alone(detector):
    data = _data()
    one = list(loss_gradients(detector, data, StepLoss(step)))
    other = list(loss_gradients(detector, data, by_hand))
    for name in one[0]:
        torch.testing.assert_close(one[0][name], other[0][name])
    assert detector.body[1].num_batches_tracked == 0 and not detector.training


def test_batches_of_hugging_face_are_understood():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 2)

        def forward(self, input_ids, attention_mask):
            h = self.table(input_ids) * attention_mask[..., None]
            return {"logits": self.head(h.sum(1))}

    torch.manual_seed(0)
    ids = torch.randint(10, (40, 6))
    items = [
        {
            "input_ids": ids[i : i + 8],
            "attention_mask": torch.ones(8, 6, dtype=torch.long),
            "labels": (ids[i : i + 8].float().mean(1) > 4.5).long(),
        }
        for i in range(0, 40, 8)
    ]
    model = Encoder()
    before = mb.measure(model, items, runs=2).score
    trained = mb.fit(model, items, epochs=20, lr=0.05)
    after = mb.measure(trained, items, runs=2).score
    assert before is not None and after is not None
    assert after.value > before.value and after.value > 0.9
    q = mb.quantize(trained, items, accuracy_drop=0.1, validation=items)
    found = mb.measure(q, items, runs=2).score
    assert found is not None and found.value > 0.8


def test_what_a_step_must_return_is_said(detector):
    with pytest.raises(InputError, match="step returned a|step returned dict|one number"):
        mb.fit(
            detector,
            _data(),
            step=lambda network, batch: network(*batch.args, batch.target)["box"].expand(3),
            lr=0.1,
        )
    with pytest.raises(InputError, match="loss= and step= both"):
        mb.fit(detector, _data(), by_hand, step=step)
    with pytest.raises(InputError, match="cross_entropy needs a tensor of targets, got a list"):
        mb.fit(detector, _data())
