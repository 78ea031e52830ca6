"""Synthetic pictures: their statistics, their scale, and what they are worth to a cut network."""

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from examples import shapes
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.pruning.settings import with_pictures
from mirabelle.sources import synthetic
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.sources.synthetic import KNOWN, SCALES, dead_leaves, is_picture, pictures_for
from mirabelle.verification import sqnr


def leaves(seed=0, shape=(16, 3, 32, 48)):
    return dead_leaves(shape, np.random.default_rng(seed))


def test_statistics_of_dead_leaves():
    """Standardized, the same by the same seed; neighbors are alike, as in photographs, and most
    differences are small while some are large (kurtosis above a normal distribution's 3).
    """
    pictures = leaves()
    assert pictures.shape == (16, 3, 32, 48) and torch.equal(pictures, leaves())
    assert not torch.equal(pictures, leaves(1))
    assert pictures.mean((1, 2, 3)).abs().max() < 1e-5
    assert float(pictures.std()) == pytest.approx(1, abs=1e-3)
    steps = pictures.diff(dim=3).flatten()
    assert float(steps.var()) < 0.5  # of white noise it is 2
    assert float((steps**4).mean() / steps.square().mean() ** 2) > 6


def test_no_other_generator_is_touched():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    leaves()
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_that_batchnorm_has_seen(scale):
    mean, deviation, *_ = SCALES[scale]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    net(leaves(7) * deviation + mean)
    net.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pictures, found = pictures_for(net, as_batch(torch.zeros(1, 3, 32, 48)))
    assert found == scale and sum(b.size for b in pictures) == 256
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (-2, 2, "mean 0 and deviation 1"),
        (0, 0, "mean 0 and deviation 1"),
        (0, 1, "0 to 1"),
        (0, 255, "0 to 255"),
    ],
)
def test_the_scale_of_the_example_where_no_batchnorm_tells(low, high, scale):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    example = torch.linspace(low, high, 256).view(1, 1, 16, 16)
    assert pictures_for(net, as_batch(example))[1] == scale


def trained_on(deviation, mean=0.0):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    net(leaves(7) * deviation + mean)
    return net.eval()


def picture(low, high):
    return torch.linspace(low, high, 3072).view(1, 3, 32, 32)


ZEROS = torch.zeros(1, 3, 32, 32)
IMAGENET = Preprocessing(32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("deviation", "example", "how", "low", "high"),
    [
        (1, picture(-1, 1), None, [-2.12] * 3, [2.64] * 3),  # those of photographs
        (1, picture(-3, 1), None, [-3] * 3, [2.64] * 3),  # which a picture widens
        (0.5, picture(-1, 0), None, [-1] * 3, [1] * 3),
        (0.5, picture(-2, 1), None, [-2] * 3, [1] * 3),
        (1, ZEROS, IMAGENET, [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.64]),
        (1, ZEROS, Preprocessing(32, 32, scale=255.0), [0] * 3, [255] * 3),
    ],
)
def test_ends_of_bounded_pictures(deviation, example, how, low, high):
    net = trained_on(deviation)
    for batch in pictures_for(net, as_batch(example), bounded=True, how=how)[0]:
        found = batch.tensors[0].amin((0, 2, 3)), batch.tensors[0].amax((0, 2, 3))
        assert torch.allclose(found[0], torch.tensor(low, dtype=torch.float32), atol=1e-4)
        assert torch.allclose(found[1], torch.tensor(high, dtype=torch.float32), atol=1e-4)


@pytest.mark.parametrize("made", [torch.zeros, torch.ones, torch.randn])
@pytest.mark.parametrize("how", [None, Preprocessing(32, 32, guessed=True)])
def test_no_ends_that_nobody_knows(made, how):
    torch.manual_seed(0)
    example = as_batch(made(1, 3, 32, 32))
    (bounded, _), (plain, _) = (
        pictures_for(trained_on(1), example, bounded=b, how=how) for b in (True, False)
    )
    assert all(torch.equal(a.tensors[0], b.tensors[0]) for a, b in zip(bounded, plain))


def test_what_is_known_is_the_scale_where_no_batchnorm_tells():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    half = Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3)
    pictures, scale = pictures_for(net, as_batch(ZEROS), how=half)
    assert scale == KNOWN
    assert torch.equal(pictures[0].tensors[0], leaves(0, pictures[0].tensors[0].shape) / 2)


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(1, 8),
        torch.zeros(1, 3, 32, 32, dtype=torch.int64),
        torch.zeros(1, 3, 1, 128),
        torch.zeros(1, 1, 4, 16, 16),
    ],
)
def test_what_is_no_picture(example):
    assert not is_picture(example)
    assert pictures_for(nn.Identity(), as_batch(example)) == ([], "")


class OneSample(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 4)

    def forward(self, x):
        return self.head(self.conv(x).relu().view(1, 16 * 64))


def test_a_network_for_one_sample_is_cut_by_its_weights():
    x = torch.zeros(1, 3, 8, 8)
    assert pictures_for(OneSample(), as_batch(x)) == ([], "")


@pytest.fixture(scope="module")
def shapes_and_test():
    return shapes.network(), *shapes.draw(5, 256)


def right(network, images, labels):
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def test_a_cut_without_data_is_repaired(shapes_and_test, monkeypatch):
    """The oracle is the test set, which knows nothing of the pictures."""
    monkeypatch.setattr(synthetic, "SAMPLES", 48)
    network, images, labels = shapes_and_test
    x = images[:1]
    with_pictures = mb.prune(network, x, macs=0.5)
    alone = mb.prune(network, x, macs=0.5, repair=None)
    assert right(with_pictures, images, labels) > right(alone, images, labels) + 0.1


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, True),
        ({"criterion": "l2"}, True),
        ({"repair": None}, False),
        ({"criterion": "taylor"}, False),
        ({"criterion": "brain_surgeon"}, False),
        ({"criterion": lambda group, stats: None}, False),
        ({"depth": True}, False),
    ],
)
def test_pictures_are_made_where_nothing_asks_for_data(options, made, shapes_and_test, monkeypatch):
    monkeypatch.setattr(synthetic, "SAMPLES", 48)
    network, images, _ = shapes_and_test
    given = {"criterion": None, "repair": "auto", "depth": False, "seed": 0, "data": None}
    found = with_pictures(network, images[:1], given | options)
    assert (found["data"] is not None) == made
    if made:
        assert sum(b.size for b in found["data"]) == 48
        assert all(b.target is None for b in found["data"])


def test_data_that_are_given_are_those_that_are_used(shapes_and_test):
    data = [shapes_and_test[1][:4]]
    given = {"criterion": None, "repair": "auto", "depth": False, "seed": 0, "data": data}
    assert with_pictures(shapes_and_test[0], data[0][:1], given)["data"] is data


@pytest.mark.parametrize("named", [False, True])
def test_integers_without_data(named, shapes_and_test, tmp_path):
    """A network, or its ONNX file, which says its inputs: the oracle is the float network."""
    network, images, _ = shapes_and_test
    model, example = network, images[:1]
    if named:
        model, example = mb.export(network, tmp_path, inputs=images[:1]).path, None
    q = mb.quantize(model, inputs=example, repair=None)
    with torch.no_grad():
        exact, found = network(images), q(images)
    assert sqnr(exact.numpy(), found.numpy()) > 30
    assert float((exact.argmax(1) == found.argmax(1)).float().mean()) > 0.98


def test_integers_for_what_takes_no_picture_need_data():
    with pytest.raises(InputError, match="quantize needs data="):
        mb.quantize(nn.Linear(3, 3), inputs=torch.zeros(1, 3))
    with pytest.raises(InputError, match="give inputs"):
        mb.quantize(nn.Linear(3, 3))
