"""What accumulators keep, sample by sample; and scores, intervals and outputs by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.measurement import accuracy, bootstrap
from mirabelle.measurement.accuracy import Scores, scores_of
from mirabelle.measurement.bootstrap import OpaqueError, Resampled, Unit, added, merged


class State:
    """Something that holds what is given, and what `update` is told to add."""

    def __init__(self, **values):
        vars(self).update(values)

    def compute(self):
        return 0.0


def test_units_add_up_place_by_place():
    one = Unit({("a",): np.array(2.0), ("b",): np.ones(3)}, {("l",): [1]}, 1)
    two = Unit({("a",): np.array(5.0), ("c",): np.array(7.0)}, {("l",): [2, 3], ("m",): ["x"]}, 4)
    both = one + two
    assert {k: v.tolist() for k, v in both.numbers.items()} == {
        ("a",): 7.0,
        ("b",): [1.0, 1.0, 1.0],
        ("c",): 7.0,
    }
    assert both.items == {("l",): [1, 2, 3], ("m",): ["x"]} and both.count == 5
    assert one.items == {("l",): [1]} and one.numbers["a",] == 2.0


def test_what_was_added_is_the_difference():
    fresh = State(n=3, seen=torch.tensor([1, 1]), kept=["old"], inner={"x": 1.5, "deep": {"y": 0}})
    after = State(
        n=5, seen=torch.tensor([1, 4]), kept=["old", "new"], inner={"x": 1.5, "deep": {"y": 2}}
    )
    unit = added(fresh, after)
    assert {k: v.tolist() for k, v in unit.numbers.items()} == {
        ("n",): 2.0,
        ("seen",): [0.0, 3.0],
        ("inner", "deep", "y"): 2.0,
    }
    assert unit.items == {("kept",): ["new"]} and unit.count == 1


def test_what_was_not_there_before_is_added_whole():
    unit = added(State(), State(n=0, kept=[1], total=np.array([2, 3])))
    assert {k: v.tolist() for k, v in unit.numbers.items()} == {("n",): 0.0, ("total",): [2.0, 3.0]}
    assert unit.items == {("kept",): [1]}
    scalar = added(State(total=torch.tensor(0.0)), State(total=torch.tensor([1.0, 2.0])))
    assert scalar.numbers["total",].tolist() == [1.0, 2.0]  # a zero that takes its form later


@pytest.mark.parametrize(
    "before, after",
    [
        ({"name": "a"}, {"name": "b"}),
        ({"mask": torch.tensor(False)}, {"mask": torch.tensor(True)}),
        ({"flag": False}, {"flag": True}),
        ({"grid": np.zeros(2)}, {"grid": np.zeros(3)}),
        ({"flags": np.array([False])}, {"flags": np.array([True])}),
        ({"layer": nn.Identity()}, {"layer": nn.Identity()}),
        ({"seen": {1}}, {"seen": {1, 2}}),
    ],
)
def test_what_does_not_add_up_is_opaque(before, after):
    with pytest.raises(OpaqueError):
        added(State(**before), State(**after))


def test_what_stays_adds_nothing():
    kept = {"name": "a", "function": len, "mask": torch.tensor(True), "layer": nn.Identity()}
    fresh = State(**kept, n=4, grid=np.ones(2))
    unit = added(fresh, State(**kept, n=4, grid=np.ones(2)))
    assert not unit.numbers and not unit.items
    assert not added(State(function=len), State(function=max)).numbers  # functions are no state


def test_units_count_as_often_as_they_were_drawn():
    fresh = State(
        n=10, total=torch.tensor(1, dtype=torch.int32), rows=["old"], inner={"x": np.float32(0.5)}
    )
    units = [
        Unit({("n",): np.array(1.0), ("inner", "x"): np.array(0.25)}, {("rows",): ["a"]}),
        Unit({("n",): np.array(2.0), ("total",): np.array(3.0)}, {("rows",): ["b", "c"]}),
        Unit({("n",): np.array(100.0)}, {("rows",): ["never"]}),
    ]
    found = merged(fresh, fresh, units, np.array([2, 3, 0]))
    assert (found.n, int(found.total), found.inner["x"]) == (18, 10, 1.0)
    assert found.rows == ["old", "a", "a", "b", "c", "b", "c", "b", "c"]
    assert isinstance(found.n, int) and found.total.dtype is torch.int32
    assert type(found.inner["x"]) is np.float32
    assert (fresh.n, fresh.rows, fresh.inner) == (10, ["old"], {"x": np.float32(0.5)})
    array = merged(
        State(),
        State(h=np.zeros(2, np.int16)),
        [Unit({("h",): np.array([1.0, 2.0])})],
        np.array([2]),
    )
    assert array.h.dtype == np.int16 and array.h.tolist() == [2, 4]
    assert merged(State(), State(), [Unit({("h",): np.array(3.0)})], np.array([1])).h == 3.0


class Sums:
    def __init__(self):
        self.total, self.n = torch.zeros(2), 0

    def update(self, output, target):
        self.total = self.total + output.sum(0)
        self.n += len(target)

    def compute(self):
        return self.total[0] / self.n


def batches(count=6, size=8):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 2, generator=generator), torch.zeros(size)) for _ in range(count)]


def resampled(make, draws, data):
    found = Resampled(make, "own", draws)
    for x, y in data:
        found.add(x, y, len(y))
    return found


def test_resamples_are_those_of_the_bootstrap():
    """Each draw is the mean of as many samples as there are, drawn anew by the same generator."""
    data = batches()
    found = resampled(Sums, 20, data)
    values = torch.cat([x[:, 0] for x, _ in data]).double().numpy()
    n = len(values)
    assert found.adds_up and found.by_sample and len(found.units) == n == 48
    chosen = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 20)
    assert found.draws() == pytest.approx(chosen @ values / n, abs=1e-6)
    assert found.value == pytest.approx(values.mean(), abs=1e-6) and not found.halves


def test_without_resamples_nothing_is_kept():
    found = resampled(Sums, 0, batches(2))
    assert not found.units and not found.halves and len(found.draws()) == 0
    assert found.value == pytest.approx(float(torch.cat([x[:, 0] for x, _ in batches(2)]).mean()))


def test_numbers_that_are_kept_have_a_limit(monkeypatch):
    """Of 64 numbers in all: 32 units of two and one of one; never fewer than `FEWEST_UNITS`."""
    monkeypatch.setattr(bootstrap, "MEMORY", 9)
    monkeypatch.setattr(bootstrap, "FEWEST_UNITS", 5)
    found = resampled(Sums, 3, batches(5, 4))
    assert [u.count for u in found.units] == [4] * 5 and found.stride == 4
    monkeypatch.setattr(bootstrap, "MEMORY", 21)  # three numbers a unit: seven units
    assert [u.count for u in resampled(Sums, 3, batches(7, 1)).units] == [1] * 7
    assert [u.count for u in resampled(Sums, 3, batches(8, 1)).units] == [2] * 4
    monkeypatch.setattr(bootstrap, "UNITS", 6)
    assert [u.count for u in resampled(Sums, 3, batches(7, 1)).units] == [2, 2, 2, 1]


class Longest:
    """No sum: a text that grows."""

    def __init__(self):
        self.said = ""

    def update(self, output, target):
        self.said = max(self.said, "x" * len(target), key=len)

    def compute(self):
        return len(self.said)


def test_halves_are_of_the_samples():
    data = batches(3, 10)
    found = resampled(Longest, 50, data)
    assert not found.adds_up and not found.by_sample and not found.units
    assert len(found.halves) == 50 and found.value == 10.0
    random = np.random.default_rng(0)
    seen = np.stack([random.random((50, 1)) < 0.5 for _ in data]).any(0)[:, 0]
    assert (found.draws() == np.where(seen, 10.0, 0.0)).all()  # whole batches, or none


class Spread:
    """By samples, and no sum: the largest of all."""

    def __init__(self):
        self.most = -1e9

    def update(self, output, target):
        self.most = max(self.most, float(output[:, 0].max()))

    def compute(self):
        if self.most < -1e8:
            raise ValueError("nothing seen")
        return self.most


def test_halves_take_the_same_rows_of_outputs_and_targets():
    data = batches(4, 6)
    found = resampled(Spread, 30, data)
    assert found.by_sample and not found.adds_up
    random = np.random.default_rng(0)
    expected = np.full(30, -np.inf)
    for x, _ in data:
        taken = random.random((30, 6)) < 0.5
        values = np.where(taken, x[:, 0].numpy(), -np.inf)
        expected = np.maximum(expected, values.max(1))
    assert found.draws() == pytest.approx(expected)
    empty = Resampled(Spread, "own", 2)
    assert math.isnan(empty._value(Spread()))  # a resample that saw nothing has no figure


def test_a_state_that_changes_its_form_is_said():
    class Moody(Sums):
        def update(self, output, target):
            super().update(output, target)
            self.mood = "bad" if len(target) == 3 else "good"

        mood = "good"

    def make():
        made = Moody()
        made.mood = "good"
        return made

    found = Resampled(make, "moody", 4)
    x, y = batches(1, 4)[0]
    found.add(x, y, 4)
    assert found.adds_up
    with pytest.raises(InputError, match="state of moody changes its form between batches"):
        found.by_sample = False
        found.add(x[:3], y[:3], 3)


def test_intervals_of_means_by_hand():
    """1, 2, 3 and 6: the mean is 3, the deviation sqrt(14 / 3), half the interval 1.96 times its
    half.
    """
    low, high = accuracy.mean_interval(np.array([1.0, 2.0, 3.0, 6.0]))
    half = 1.959964 * (14 / 3) ** 0.5 / 2
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    narrow = accuracy.mean_interval(np.array([1.0, 2.0, 3.0, 6.0]), confidence=0.5)
    assert narrow == pytest.approx((3 - 0.67449 * half / 1.959964, 3 + 0.67449 * half / 1.959964))
    assert accuracy.mean_interval(np.array([4.0])) == (-math.inf, math.inf)
    assert np.isfinite(accuracy.mean_interval(np.array([4.0, 5.0]))).all()
    drop = accuracy.paired_drop(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert drop == pytest.approx((0.25, 0.25 - 1.959964 / 4, 0.25 + 1.959964 / 4))


def test_intervals_of_proportions_end_at_zero_and_one():
    assert accuracy.wilson(0, 5)[0] == 0.0 and accuracy.wilson(5, 5)[1] == 1.0
    assert accuracy.wilson(1, 1) == pytest.approx((0.2065, 1.0), abs=1e-4)
    assert accuracy.wilson(5, 10, confidence=0.5) == pytest.approx((0.39569, 0.60431), abs=1e-4)
    with pytest.raises(InputError, match="n = 0"):
        accuracy.wilson(0, 0)


def test_scores_of_zero_and_one_are_proportions():
    whole = accuracy.score(np.array([1.0, 0.0, 1.0, 1.0]), "top1")
    assert whole.binary and (whole.low, whole.high) == accuracy.wilson(3, 4) and whole.n == 4
    assert str(whole) == "top1 75.00 % [30.06, 95.44], n = 4"
    parts = accuracy.score(np.array([1.0, 0.0, 0.5]), "own")
    assert not parts.binary and (parts.low, parts.high) == accuracy.mean_interval(
        np.array([1.0, 0.0, 0.5])
    )
    assert str(parts) == "own 0.5 [-0.065793, 1.0658], n = 3"


def test_drops_of_figures_without_common_resamples_are_uncertain():
    few = Scores("own", 0.5, 9, draws=np.array([0.4, 0.6]))
    many = Scores("own", 0.4, 9, draws=np.array([0.3, 0.5, 0.4]))
    assert few.drop(many) == pytest.approx((0.1, -math.inf, math.inf))
    assert few.drop(Scores("own", 0.4, 9)) == pytest.approx((0.1, -math.inf, math.inf))
    assert Scores("own", 0.4, 9).drop(few) == pytest.approx((-0.1, -math.inf, math.inf))
    samples = Scores.of_samples(np.array([1.0, 0.0]), "own")
    assert samples.drop(few) == pytest.approx((0.0, -math.inf, math.inf))
    less = Scores("e", 0.5, 9, False, draws=np.array([0.4, 0.6]))
    worse = Scores("e", 0.7, 9, False, draws=np.array([0.5, 0.9]))
    drop, low, high = less.drop(worse)
    half = 1.959964 * 0.2 / 2**0.5
    assert (drop, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-5)
    assert less.rank == -0.5 and few.rank == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_have_no_score(value):
    outputs = iter([torch.eye(2), torch.tensor([[value, 0.0], [0.0, 1.0]])])
    data = [(torch.zeros(2), torch.arange(2))] * 2
    with pytest.raises(InputError, match="batch 1 are NaN or infinite, so top1 says"):
        scores_of(lambda batch: next(outputs), data)
    masked = torch.tensor([[1.0, -math.inf], [-math.inf, 1.0]])  # classes that are ruled out
    found = scores_of(lambda batch: masked, data)
    assert found.value == 1.0 and found.n == 4 and found.higher


def test_scores_have_a_number_for_each_sample():
    data = [(torch.eye(3), torch.arange(3))]
    column = scores_of(lambda b: b.args[0], data, lambda o, t: torch.full((3, 1), 0.5))
    assert column.samples is not None and column.samples.tolist() == [0.5] * 3
    for wrong in (torch.ones(2), torch.ones(3, 2), torch.tensor(1.0)):
        with pytest.raises(InputError, match="gives each sample a score"):
            scores_of(lambda b: b.args[0], data, lambda o, t, w=wrong: w)
    with pytest.raises(InputError, match="NaN or infinite on 2 samples of batch 0"):
        scores_of(lambda b: b.args[0], data, lambda o, t: torch.tensor([1.0, math.nan, math.inf]))


def test_figures_without_intervals_are_not_resampled():
    found = scores_of(lambda b: b.args[0], batches(), Sums, intervals=False)
    assert found.draws is None and found.score().low == -math.inf and found.n == 48
    usual = scores_of(lambda b: b.args[0], batches(), Sums)
    assert usual.draws is not None and len(usual.draws) == bootstrap.DRAWS == 100


@pytest.mark.parametrize(
    "output, target",
    [
        (torch.zeros(2, 3, 4), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(3)),
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        (torch.zeros(2), torch.zeros(2)),
    ],
)
@pytest.mark.parametrize("metric", [accuracy.top1, accuracy.top5])
def test_classes_need_their_shapes(metric, output, target):
    with pytest.raises(InputError, match=rf"{metric.__name__} needs outputs \(N, classes\)"):
        metric(output, target)
    with pytest.raises(InputError, match=rf"{metric.__name__} needs targets \(N,\), got a list"):
        metric(output, [1, 2])


def test_the_first_tensor_of_an_output():
    two = torch.tensor([2, 3])
    assert accuracy.as_tensor((two, torch.zeros(1))) is two
    assert accuracy.as_tensor([np.float32(1.5)]) == 1.5 and accuracy.as_tensor(3).dtype is two.dtype
    assert accuracy.as_tensor({"text": "a", "x": np.array([True])}).tolist() == [1.0]
    parts = accuracy.as_tensor(torch.tensor([1 + 2j]).conj())
    assert parts.tolist() == [[1.0, -2.0]]
    for wrong in ("text", (), {"a": "b"}, None):
        with pytest.raises(InputError, match="without a tensor"):
            accuracy.as_tensor(wrong)


def test_files_give_outputs_in_the_form_of_the_network():
    given = (np.array([1.0]), np.array([2.0]))
    formed = accuracy.in_form_of(
        {"a": torch.zeros(1), "n": 7, "b": [torch.zeros(1)]}, lambda b: given
    )
    assert formed(as_batch(torch.zeros(1))) == {"a": 1.0, "n": 7, "b": [2.0]}
    single = accuracy.in_form_of({"a": torch.zeros(1)}, lambda b: given[0])
    assert single(as_batch(torch.zeros(1))) == {"a": 1.0}
    fewer = accuracy.in_form_of({"a": torch.zeros(1), "b": torch.zeros(1)}, lambda b: given[:1])
    assert fewer(as_batch(torch.zeros(1))) is given[0]
    more = accuracy.in_form_of({"a": torch.zeros(1)}, lambda b: given)
    assert more(as_batch(torch.zeros(1))) is given
    plain = accuracy.in_form_of(torch.zeros(1), len)
    assert plain is len


def test_a_network_is_scored_in_eval_mode_without_a_graph():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9)).train()
    predict = accuracy.predictor(model)
    batch = as_batch(torch.ones(4, 2))
    found = predict(batch)
    assert torch.equal(found, predict(batch)) and not found.requires_grad and model.training


def test_scores_in_a_file_have_their_number():
    kept = Scores("own", 0.5, 9, False, draws=np.array([0.4, 0.6]))
    array = kept.to_array()
    assert array.tolist() == [[0.5, 9.0, 0.4, 0.6]]
    again = Scores.from_array(array, Sums)
    assert (again.metric, again.value, again.n, again.higher) == ("Sums", 0.5, 9, True)
    assert again.draws is not None and again.draws.tolist() == [0.4, 0.6]
