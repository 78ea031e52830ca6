"""Test pictures whose class changed: which ones, how often, and what is kept of them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from mirabelle.base import png
from mirabelle.base.data import Batch
from mirabelle.measurement import changed as changes
from mirabelle.measurement.changed import Album, Watch, pixels_of, read_changed, scaled
from mirabelle.sources.preprocessing import Preprocessing


def scores(*classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def batch(count: int, target=None, shape=(1, 8, 8)) -> Batch:
    x = torch.arange(count * int(np.prod(shape)), dtype=torch.float32).reshape(count, *shape)
    return Batch((x,), {}, None if target is None else torch.tensor(target))


def watched(batches: list[Batch], before: list, after: list, agreeing: bool = False) -> Watch:
    watch = Watch(Album(), agreeing)
    for stage, answers in (("original", before), ("small", after)):
        given = iter(answers)
        predict = watch.watched(lambda b, given=given: next(given), stage, "onnxruntime")
        for one in batches:
            predict(one)
    return watch


def test_what_changed_by_hand(tmp_path):
    given = [batch(3, [0, 1, 2]), batch(2, [1, 1])]
    # right before: 0, 1, -, 1, -; right after: 0, -, -, 1, 1
    before, after = [scores(0, 1, 0), scores(1, 0)], [scores(0, 2, 1), scores(1, 1)]
    watch = watched(given, before, after)
    watch.write(tmp_path)
    found = read_changed(tmp_path, "small", "onnxruntime", ("husky", "wolf"), True)
    assert found is not None
    counts = {k: found[k] for k in ("n", "changed", "gained", "lost", "colors", "stage")}
    assert counts == {
        "n": 5,
        "changed": 3,
        "gained": 1,
        "lost": 1,
        "colors": True,
        "stage": "small",
    }
    rows = [(e["index"], e["before"], e["after"], e["label"]) for e in found["examples"]]
    assert rows == [
        (1, "wolf", "2", "wolf"),
        (2, "husky", "wolf", "2"),
        (4, "husky", "wolf", "wolf"),
    ]
    assert all(png.URI.fullmatch(e["picture"]) for e in found["examples"])
    assert read_changed(tmp_path, "original", "onnxruntime", (), True) is None
    assert read_changed(tmp_path / "none", "small", "onnxruntime", (), True) is None


def test_without_labels_the_targets_are_no_labels(tmp_path):
    given = [batch(2)._replace(target=scores(0, 1))]
    watch = watched(given, [scores(0, 1)], [scores(0, 2)], agreeing=True)
    found = watch.found["small/onnxruntime"]
    assert (found.n, found.changed, found.gained, found.lost) == (2, 1, None, None)
    assert found.examples[0].label is None
    watch.write(tmp_path)
    json.loads((tmp_path / changes.FILE).read_text())


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (batch(2, [0.5, 1.5]), scores(0, 1)),  # values
        (batch(2, [[0, 1], [1, 0]]), scores(0, 1)),  # a target for each of several things
        (batch(2, [0, 1]), torch.zeros(2, 3, 4)),  # classes of places
        (batch(2, [0, 1]), torch.zeros(2, 1)),  # one figure
    ],
    ids=["values", "many", "places", "figure"],
)
def test_what_gives_no_classes_has_no_examples(given, answer):
    assert watched([given], [answer], [answer.flip(0)]).found == {}


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 7, 8), (9,), (1, 8, 8, 8)], ids=str)
def test_what_is_no_picture_has_counts_alone(shape, tmp_path):
    watch = watched([batch(2, [0, 1], shape)], [scores(0, 1)], [scores(1, 1)])
    assert watch.found["small/onnxruntime"].changed == 1
    watch.write(tmp_path)
    assert read_changed(tmp_path, "small", "onnxruntime", (), False) is None


def test_pictures_are_few_small_and_bounded(monkeypatch):
    many = batch(30, [0] * 30, (3, 100, 80))
    answers = [scores(*[0] * 30)], [scores(*[1] * 30)]
    watch = watched([many], *answers)
    examples = watch.found["small/onnxruntime"].examples
    assert len(examples) == changes.MOST and watch.found["small/onnxruntime"].changed == 30
    image = pytest.importorskip("PIL.Image")
    import base64

    drawn = image.open(io.BytesIO(base64.b64decode(examples[0].picture.partition(",")[2])))
    assert drawn.size == (40, 50)  # squares of two pixels
    monkeypatch.setattr(changes, "BYTES", 2 * len(examples[0].picture) + 100)
    bounded = watched([many], *answers)
    assert 1 <= len(bounded.found["small/onnxruntime"].examples) <= 2
    assert bounded.album.bytes <= changes.BYTES


def test_values_become_the_bytes_that_they_were():
    how = Preprocessing(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3, color="bgr", layout="nhwc")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    values = torch.from_numpy(how.normalized(pixels))[None]
    one = Batch((torch.zeros(1, 4), values), {}, None)  # the second input is the picture
    assert (pixels_of(one, 0, how) == how.pixels_of(values[0].numpy())).all()
    assert scaled(np.array([[[-1.0], [0.0], [1.0]]])).ravel().tolist() == [0, 128, 255]
    assert scaled(np.full((2, 2, 1), 3.0)).max() == 0
