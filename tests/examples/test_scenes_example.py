"""From scenes to files with their mAP and mIoU on the runtime; the metrics by hand."""

import pytest
import torch

import mirabelle as mb
from examples import scenes, train_scenes
from examples.scenes import MeanAP, MeanIoU
from mirabelle.measurement.accuracy import evaluate, in_form_of, predictor

BOX = [10.0, 10.0, 30.0, 30.0]


def _output(boxes, scores, classes):
    """Logits that give these scores and classes."""
    n = len(boxes)
    logits = torch.full((1, n, 3), -30.0)
    logits[0, torch.arange(n), torch.tensor(classes)] = 30.0
    score = torch.tensor([scores])
    return {
        "boxes": torch.tensor([boxes]),
        "objectness": (score / (1 - score)).log(),
        "classes": logits,
    }


def test_average_precision_by_hand():
    """One disc found, a false disc that scores less, a second disc missed: precision 1 up to a
    recall of a half, which is 51 of 101 marks. Of the squares, the only one is found last.
    """
    metric = MeanAP()
    truth = {"boxes": torch.tensor([BOX, [40.0, 40.0, 60.0, 60.0]]), "labels": torch.tensor([0, 0])}
    metric.update(_output([BOX, [0.0, 40.0, 20.0, 60.0]], [0.9, 0.6], [0, 0]), [truth])
    truth = {"boxes": torch.tensor([BOX]), "labels": torch.tensor([1])}
    metric.update(_output([[0.0, 40.0, 20.0, 60.0], BOX], [0.8, 0.7], [1, 1]), [truth])
    assert metric.compute()["map50"] == pytest.approx((51 / 101 + 0.5) / 2, abs=1e-6)


def test_a_box_counts_once_and_overlaps_are_asked_for():
    """A box that is moved by 2 of 20 pixels overlaps by 18/22 = 0.818: it hits at 7 of 10."""
    metric = MeanAP()
    moved = [12.0, 10.0, 32.0, 30.0]
    truth = {"boxes": torch.tensor([BOX]), "labels": torch.tensor([2])}
    metric.update(_output([moved, BOX], [0.9, 0.8], [2, 2]), [truth])
    found = metric.compute()
    assert found["map50"] == pytest.approx(1.0) and found["map"] == pytest.approx(0.7)


def test_intersection_over_union_by_hand():
    """Of 4 pixels of class 1 three are found and one of the ground is taken for it: 3/5."""
    target = torch.tensor([[[1, 1, 1, 1, 0, 0]]])
    said = torch.tensor([[[1, 1, 1, 0, 1, 0]]])
    metric = MeanIoU()
    metric.update(torch.nn.functional.one_hot(said, 4).permute(0, 3, 1, 2).float(), target)
    assert metric.compute() == pytest.approx((3 / 5 + 1 / 3) / 2)


def test_scenes_come_from_their_seed():
    one, other = scenes.draw(7, 3), scenes.draw(7, 3)
    assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])
    for found, pixels in zip(one[1], one[2]):
        assert 1 <= len(found["labels"]) <= 4
        left, top, right, bottom = found["boxes"][0]
        inside = pixels[int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
        assert (inside == int(found["labels"][0]) + 1).float().mean() > 0.4


def test_training_goes_from_the_seed_upwards():
    model, data = train_scenes.trained("detector", epochs=2, train=320, validation=16, test=96)
    start = scenes.Detector()
    score = [evaluate(predictor(m), data["test"], MeanAP).value for m in (start, model)]
    assert score[1] > score[0]


@pytest.mark.parametrize(
    ("network", "data", "metric", "least"),
    [
        ("detector", "detection_data", MeanAP, 0.9),
        ("segmenter", "segmentation_data", MeanIoU, 0.82),
    ],
)
def test_the_networks_do_on_the_runtime_what_they_do_in_pytorch(
    network, data, metric, least, tmp_path
):
    model = getattr(scenes, network)()
    few = getattr(scenes, data)(train=1, validation=1, calibration=1, test=40)["test"]
    file = mb.export(model, tmp_path, inputs=few[0][0][:1])
    whole = predictor(model)(_batch(few[0]))
    here = evaluate(predictor(model), few, metric)
    there = evaluate(in_form_of(whole, file.predict), few, metric)
    assert here.n == there.n == 40 and here.low < here.value < here.high
    assert here.value > least and there.value == pytest.approx(here.value, abs=2e-3)


def _batch(item):
    from mirabelle.base.data import as_batch

    return as_batch(item)


def test_the_recipe_gives_an_int8_file_with_its_map_on_the_runtime(tmp_path, monkeypatch):
    counts = {"train": 8, "calibration": 48, "validation": 40, "test": 64}
    monkeypatch.setattr(scenes, "COUNTS", counts)
    run = mb.run("examples/scenes.yaml", folder=tmp_path / "run", check=False)
    result = run.report["result"]
    stage = run.report["stages"][-1]["runtimes"]["onnxruntime"]
    assert stage["accuracy"]["n"] == 64 and stage["accuracy"]["value"] > 0.85
    low, high = stage["accuracy_drop_interval"]
    assert low <= result["accuracy_drop"] <= high < 0.1
    assert result["size_ratio"] > 2.5
    page = (tmp_path / "run" / "report.html").read_text()
    assert "MeanAP" in page
