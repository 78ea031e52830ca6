"""Metrics of all samples together: accumulators, their intervals, and outputs of any form."""

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.measurement.accuracy import (
    Scores,
    as_tensor,
    evaluate,
    in_form_of,
    predictor,
    scores_of,
    top5,
    wilson,
)
from mirabelle.measurement.bootstrap import _close


class Accuracy:
    """A mean over samples, so that its interval can be compared with the exact one."""

    def __init__(self):
        self.right = torch.tensor(0)
        self.total = 0

    def update(self, output, target):
        self.right += (output.argmax(1) == target).sum()
        self.total += len(target)

    def compute(self):
        return {"accuracy": self.right / self.total, "seen": self.total}


class RankedAUC:
    """The area under the ROC curve, from lists of all scores and labels."""

    def __init__(self):
        self.scores, self.labels = [], []

    def update(self, output, target):
        self.scores.append(output[:, 1] - output[:, 0])
        self.labels.append(target)

    def compute(self):
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        order = scores.argsort()
        rank = torch.empty(len(scores), dtype=torch.float64)
        rank[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
        n1, n0 = int((labels == 1).sum()), int((labels == 0).sum())
        return (rank[labels == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)


class Largest:
    """The largest output: no sum of samples."""

    def __init__(self):
        self.most = -1e9

    def update(self, output, target):
        self.most = max(self.most, float(output.max()))

    def compute(self):
        return self.most


def _problem(n=400, classes=2, sizes=(64, 64, 33)):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g)
    y = (x[:, 0] + 0.8 * torch.randn(n, generator=g) > 0).long()
    batches, at = [], 0
    while at < n:
        size = sizes[len(batches) % len(sizes)]
        batches.append((x[at : at + size], y[at : at + size]))
        at += size
    torch.manual_seed(1)
    model = nn.Linear(6, classes)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[1, 0] = 1.0
    return model, batches


def test_the_interval_of_an_accumulator_is_that_of_the_mean_it_computes():
    model, data = _problem()
    exact = evaluate(predictor(model), data, "top1")
    found = evaluate(predictor(model), data, Accuracy())
    assert found.value == pytest.approx(exact.value) and found.n == exact.n == 400
    width = (found.high - found.low) / (exact.high - exact.low)
    assert 0.75 < width < 1.25
    assert found.metric == "Accuracy" and not found.binary


def test_lists_that_grow_are_resampled_too():
    """Hanley & McNeil 1982 give the standard error of an area by a formula."""
    model, data = _problem()
    found = evaluate(predictor(model), data, RankedAUC)
    labels = torch.cat([y for _, y in data])
    n1, n0, a = int(labels.sum()), int((1 - labels).sum()), found.value
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = ((a * (1 - a) + (n1 - 1) * (q1 - a * a) + (n0 - 1) * (q2 - a * a)) / (n1 * n0)) ** 0.5
    assert 0.7 < (found.high - found.low) / (2 * 1.96 * error) < 1.3


def test_an_accumulator_that_does_not_add_up_is_run_on_halves():
    model, data = _problem()
    scores = scores_of(predictor(model), data, Largest)
    whole = max(float(predictor(model)(mb_batch(b)).max()) for b in data)
    assert scores.value == pytest.approx(whole)
    assert scores.draws is not None and scores.draws.max() <= scores.value + 1e-6
    assert (scores.draws < scores.value).mean() > 0.2  # half of them lack the largest


def mb_batch(item):
    from mirabelle.base.data import as_batch

    return as_batch(item)


def test_networks_are_compared_on_the_same_resamples():
    """Paired, the interval of a drop is far smaller than those of the two figures."""
    model, data = _problem()
    other = nn.Linear(6, 2)
    with torch.no_grad():
        other.weight.copy_(model.weight)
        other.bias.copy_(model.bias)
        other.weight[0, 3] += 0.05
    before, after = (scores_of(predictor(m), data, RankedAUC) for m in (model, other))
    drop, low, high = before.drop(after)
    assert drop == pytest.approx(before.value - after.value)
    alone = before.score()
    assert high - low < 0.35 * (alone.high - alone.low)
    assert before.drop(before) == (0.0, 0.0, 0.0)


def test_of_a_metric_where_less_is_better_more_is_worse():
    class Errors(Accuracy):
        higher_is_better = False

        def compute(self):
            return {"errors": 1 - self.right / self.total}

    model, data = _problem()
    flipped = nn.Linear(6, 2)
    with torch.no_grad():
        flipped.weight.copy_(-model.weight)
        flipped.bias.copy_(-model.bias)
    good, bad = (scores_of(predictor(m), data, Errors()) for m in (model, flipped))
    assert good.value < bad.value
    assert good.drop(bad)[0] == pytest.approx(bad.value - good.value) and good.drop(bad)[0] > 0
    assert good.rank > bad.rank and not good.score().higher_is_better


def test_what_is_given_stays_as_it_is():
    model, data = _problem(n=64)
    mine = Accuracy()
    mine.update(torch.eye(2), torch.tensor([1, 0]))
    assert evaluate(predictor(model), data, mine).n == 64
    assert mine.total == 2 and int(mine.right) == 0


def test_memory_is_bounded_by_neighbors_that_are_put_together(monkeypatch):
    from mirabelle.measurement import bootstrap

    monkeypatch.setattr(bootstrap, "UNITS", 40)
    model, data = _problem()
    make = bootstrap.Resampled(Accuracy, "accuracy")
    for x, y in data:
        make.add(model(x).detach(), y, len(y))
    assert make.stride == 16 and len(make.units) <= 40
    assert sum(u.count for u in make.units) == 400
    spread = make.draws().std()
    exact = (make.value * (1 - make.value) / 400) ** 0.5
    assert 0.6 < spread / exact < 1.5


def test_targets_that_cannot_be_divided_are_resampled_by_batch():
    """Boxes of all images in one tensor, as many as there are images: rows are no samples."""

    class Found:
        def __init__(self):
            self.hits, self.boxes = 0, 0

        def update(self, output, target):
            for image, box in target.tolist():
                self.hits += int(output[int(image)].argmax() == int(box))
                self.boxes += 1

        def compute(self):
            return self.hits / self.boxes

    data = [
        (torch.randn(4, 6), torch.tensor([[3, 0], [3, 1], [0, 1], [2, 0]])),
        (torch.randn(5, 6), torch.tensor([[0, 1], [4, 1]])),
    ] * 8
    model, _ = _problem()
    scores = scores_of(predictor(model), data, Found)
    hits = [int(model(x)[int(i)].argmax() == int(c)) for x, t in data for i, c in t.tolist()]
    assert scores.value == pytest.approx(np.mean(hits)) and scores.n == 72
    assert scores.draws is not None and np.isfinite(scores.draws).all()


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        h = self.body(x).relu()
        return {"kind": self.a(h), "parts": (self.b(h), h)}


def both_right(output, target):
    kind = output["kind"].argmax(1) == target["kind"]
    return (kind & (output["parts"][0].argmax(1) == target["part"])).float()


def test_outputs_and_targets_come_as_they_are():
    torch.manual_seed(0)
    model = Heads().eval()
    x = torch.randn(20, 6)
    target = {"kind": torch.randint(2, (20,)), "part": torch.randint(3, (20,)), "names": ["a"] * 20}
    found = mb.measure(model, [(x, target)], both_right, runs=2)
    with torch.no_grad():
        out = model(x)
    assert found.score is not None
    assert found.score.value == pytest.approx(float(both_right(out, target).mean()))


def test_a_file_gives_its_outputs_in_the_form_of_the_network(tmp_path):
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(5, 6)
    file = mb.export(model, tmp_path, inputs=x)
    whole = predictor(model)(mb_batch(x))
    formed = in_form_of(whole, file.predict)(mb_batch(x))
    assert list(formed) == ["kind", "parts"] and isinstance(formed["parts"], tuple)
    for a, b in zip(
        (whole["kind"], *whole["parts"]), (formed["kind"], *formed["parts"]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_scores_go_through_files(tmp_path):
    model, data = _problem()
    for metric in ("top1", RankedAUC):
        scores = scores_of(predictor(model), data, metric)
        np.save(tmp_path / "s.npy", scores.to_array(), allow_pickle=False)
        again = Scores.from_array(np.load(tmp_path / "s.npy"), metric)
        assert again.score() == scores.score()
        assert again.drop(scores) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (type("M", (Accuracy,), {"compute": lambda s: torch.ones(3)}), r"\(3,\) after compute"),
        (type("M", (Accuracy,), {"compute": lambda s: float("nan")}), "M is nan on these data"),
        (dict, "gives a dict; expected an object with update"),
        (lambda output, target: 0.5, "gives each sample a score"),
    ],
)
def test_what_is_no_figure_is_said(metric, message):
    model, data = _problem(n=64)
    with pytest.raises(InputError, match=message):
        evaluate(predictor(model), data, metric)


def test_words_can_be_counted():
    """Targets that are text, and a rate of errors of which less is better."""

    class WordErrors:
        higher_is_better = False

        def __init__(self):
            self.wrong = self.words = 0

        def update(self, output, target):
            for row, text in zip(output.argmax(-1).tolist(), target):
                said = ["yes" if w else "no" for w in row]
                self.wrong += sum(a != b for a, b in zip(said, text.split()))
                self.words += len(text.split())

        def compute(self):
            return self.wrong / self.words

    logits = torch.zeros(3, 2, 2)
    logits[..., 1] = 1.0
    data = [(logits, ["yes yes", "yes no", "no no"])]
    found = evaluate(predictor(nn.Identity()), data, WordErrors)
    assert found.value == pytest.approx(0.5) and found.n == 3 and not found.higher_is_better


def test_wilson_by_hand():
    """Nine of ten: z = 1.96, z² = 3.8415, so the center is (0.9 + 0.19207) / 1.38415 = 0.78899 and
    half the width is 1.96 / 1.38415 * sqrt(0.009 + 0.0096037) = 0.19314.
    """
    assert wilson(9, 10) == pytest.approx((0.59585, 0.98213), abs=2e-5)


def test_top5_of_three_classes_is_always_right():
    output, target = torch.eye(3), torch.tensor([1, 2, 0])
    assert top5(output, target).tolist() == [1.0, 1.0, 1.0]
    assert top5(torch.arange(7.0).expand(2, 7), torch.tensor([1, 2])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "draws", [None, np.array([0.4]), np.array([0.3, 0.5, np.nan, np.nan, np.nan])]
)
def test_too_few_resamples_have_no_interval(draws):
    found = Scores("own", 0.4, 10, draws=draws).score()
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert found.higher_is_better and Scores("own", 0.4, 10).rank == 0.4


def test_two_resamples_of_three_have_one():
    found = Scores("own", 0.4, 10, draws=np.array([0.3, 0.5, np.nan])).score()
    half = 1.959964 * 0.02**0.5  # the deviation of 0.3 and 0.5 is 0.1 * sqrt 2
    assert (found.low, found.high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-6)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.float64, torch.float32),
        (torch.bool, torch.float32),
        (torch.int32, torch.int32),
        (torch.complex64, torch.float32),
    ],
)
def test_outputs_become_floats_or_stay_integers(given, wanted):
    value = torch.tensor([1, 0]).to(given)
    found = as_tensor({"first": value, "second": torch.zeros(1)})
    assert found.dtype is wanted
    assert found.flatten()[0] == 1 and found.shape[0] == 2


def test_sums_are_compared_relative_to_large_ones():
    assert _close(1e6, 1e6 + 0.5) and not _close(1e6, 1e6 + 2)
    assert _close(0.0, 5e-7) and not _close(0.0, 2e-6)
