"""What is the user's: inputs that forward writes into, state that it keeps, modules that cannot be
copied; and what may not enter: numbers that are not finite.
"""

import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.checks import clone
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.measurement.accuracy import evaluate, predictor
from tests.modules import stir


class Writes(nn.Module):
    """Its forward multiplies its input in place, and counts its calls."""

    def __init__(self, inplace: bool = True):
        super().__init__()
        self.layers = stir(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        )
        self.head = nn.Linear(8 * 36, 4)
        self.inplace, self.calls = inplace, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = x.mul_(0.5) if self.inplace else x * 0.5
        return self.head(self.layers(x))


def _data(batches: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(4, 3, 8, 8), torch.arange(4) % 4) for _ in range(batches)]


VERBS = {
    "prune": lambda m, d: mb.prune(m, d[0][0], macs=0.7, align=1, data=d),
    "factorize": lambda m, d: mb.factorize(m, d[0][0], rank=2, data=d),
    "sparsify": lambda m, d: mb.sparsify(m, sparsity=0.5, data=d),
    "fit": lambda m, d: mb.fit(m, d, steps=2, lr=1e-3),
    "distill": lambda m, d: mb.distill(Writes(), m, d, steps=2, lr=1e-3),
    "quantize": lambda m, d: mb.quantize(m, d),
    "measure": lambda m, d: mb.measure(m, d),
    "explain": lambda m, d: mb.explain(m, d[0][0]),
    "evaluate": lambda m, d: evaluate(predictor(m), d),
}


@pytest.mark.parametrize("verb", VERBS)
def test_inputs_and_counters_stay_as_they_were(verb):
    network, data = Writes(), _data()
    VERBS[verb](network, data)
    assert network.calls == 0
    for (x, y), (a, b) in zip(data, _data(), strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)


def test_export_leaves_the_example_and_the_network(tmp_path):
    network, (x, _) = Writes(), _data(1)[0]
    mb.export(network, tmp_path, inputs=x)
    assert network.calls == 0 and torch.equal(x, _data(1)[0][0])


def test_a_network_that_writes_is_quantized_like_its_twin():
    writes, twin = Writes(), Writes(inplace=False)
    twin.load_state_dict(writes.state_dict())
    x = _data(1)[0][0]
    a, b = (mb.quantize(m, _data())(x.clone()) for m in (writes, twin))
    assert torch.equal(a, b)


class Shifts(nn.Module):
    """A teacher that subtracts 3 of its input, in place or not."""

    def __init__(self, inplace: bool):
        super().__init__()
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.sub_(3.0) if self.inplace else x - 3.0).mean((2, 3))


def test_a_student_does_not_see_what_its_teacher_writes():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    a, b = (
        mb.distill(student, Shifts(inplace), _data(), losses={"mse": 1.0}, steps=2, lr=0.1)
        for inplace in (True, False)
    )
    assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())
    assert not torch.equal(a[0].weight, student[0].weight)


class Holds(nn.Module):
    """Keeps what no copy can be made of."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.lock, self.caches = threading.Lock(), [{"lock": threading.RLock()}]
        self.log, self.draws = sys.__stderr__, (i for i in range(3))
        self.scale = self.layer.weight.sum() * 0 + 2  # computed: no leaf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return self.layer(x) * self.scale


def test_what_cannot_be_copied_is_shared():
    network = Holds()
    copied: Any = clone(network)
    assert copied.lock is network.lock and copied.layer.weight is not network.layer.weight
    x = torch.ones(2, 3)
    assert torch.equal(copied(x), network(x))
    trained: Any = mb.fit(network, [(x, torch.tensor([0, 1]))], steps=1, lr=0.1)
    assert not torch.equal(trained.layer.weight, network.layer.weight)


def test_old_weight_norm_is_copied():
    with pytest.warns(FutureWarning):
        network = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    x = torch.ones(1, 3)
    network(x)
    assert torch.equal(clone(network)(x), network(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_named(value):
    x = torch.zeros(4, 3)
    x[2, 1] = value
    with pytest.raises(InputError, match=r"input 0 of the batch is .* at index \[2, 1\], one of 1"):
        as_batch(x)
    with pytest.raises(InputError, match=r"the target of the batch is .* \[2, 1\]"):
        as_batch((torch.zeros(4, 3), x))
    with pytest.raises(InputError, match=r"input 'mask' of the batch is"):
        as_batch({"mask": x.numpy()})


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"explain", "measure"}))
def test_every_verb_names_the_batch(verb):
    data = _data()
    data[1][0][3, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"batch 1 of .* at index \[3, 0, 0, 0\]"):
        VERBS[verb](Writes(), data)


def test_statistics_beyond_float32_are_not_handed_out():
    data = [(torch.randn(4, 3, 8, 8) * 1e25,)]
    with pytest.raises(MirabelleError, match="NaN|infinite|not finite"):
        reestimate_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), data)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: a[::-1, ::-1][::-1, ::-1].copy()[::-1][::-1],
        lambda a: np.asfortranarray(a),
        lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides, writeable=False),
    ],
    ids=["big-endian", "negative-strides", "fortran", "read-only"],
)
def test_arrays_of_any_layout_are_the_same_numbers(view, recwarn, tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert torch.equal(as_batch(view(array)).args[0], torch.from_numpy(array))
    network = nn.Sequential(nn.Linear(3, 2))
    file = mb.export(network, tmp_path, inputs=array)
    assert np.array_equal(np.asarray(file(view(array))), np.asarray(file(array)))
    assert not recwarn.list


def test_arrays_of_objects_are_refused():
    with pytest.raises(InputError, match="array of object"):
        as_batch(np.array([[1, None]]))


class _Spoiled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


def test_outputs_that_are_nan_have_no_score():
    with pytest.raises(InputError, match="outputs for batch 0 are NaN"):
        evaluate(predictor(_Spoiled()), [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))])


@pytest.mark.parametrize(
    "metric",
    [lambda o, t: (o.argmax(1) == t).float().mean(), lambda o, t: torch.ones(1000)],
    ids=["mean", "thousand"],
)
def test_scores_are_as_many_as_samples(metric):
    with pytest.raises(InputError, match="of 4 samples"):
        evaluate(predictor(nn.Flatten()), [(torch.eye(4), torch.arange(4))], metric)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_types_are_not_quantized(dtype):
    network = nn.Sequential(nn.Linear(3, 2)).to(dtype)
    with pytest.raises(InputError, match=r"0\.weight is .*model\.float\(\)"):
        mb.quantize(network, [torch.ones(2, 3, dtype=dtype)])


def _fails(*_: Any) -> None:
    raise KeyError("forgotten")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, d: mb.prune(m, d[0][0], macs=0.7, align=1, criterion=_fails), "criterion .* on"),
        (lambda m, d: mb.sparsify(m, sparsity=0.5, criterion=_fails), "criterion .* on layers.0"),
        (lambda m, d: mb.quantize(m, d, threshold=_fails), "the threshold rule"),
        (lambda m, d: mb.quantize(m, d, threshold=_fails, symmetric=False), "the threshold rule"),
        (lambda m, d: mb.quantize(m, d, weight_threshold=_fails), "the rule of weight thresholds"),
        (lambda m, d: mb.fit(m, d, steps=1, lr=1e-3, log=_fails), "log"),
        (lambda m, d: evaluate(predictor(m), d, _fails), "batch 0, or _fails on what it gives"),
        (
            lambda m, d: mb.prune(m, d[0][0], macs=0.7, align=1, rounds=2, train=_fails, data=d),
            "train",
        ),
    ],
)
def test_functions_that_fail_are_named(call, words):
    with pytest.raises(InputError, match=f"{words}.*KeyError: 'forgotten'"):
        call(Writes(inplace=False), _data())


class Remembers(nn.Module):
    """Has a state that is no tensor, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.layers = stir(
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
        )
        self.seen = {"classes": ["a", "b"]}
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x).mean((2, 3))


def test_states_that_are_no_tensors(tmp_path):
    network, data = Remembers(), _data()
    for verb in ("prune", "sparsify", "fit", "quantize", "measure"):
        VERBS[verb](network, data)
    assert int(network.calls) == 0
    mb.distill(Remembers(), network, data, steps=2, lr=1e-3, checkpoint=tmp_path / "run")
    trained: Any = mb.fit(network, data, steps=2, lr=1e-3, checkpoint=tmp_path / "other")
    assert trained.seen == network.seen
    with pytest.warns(mb.MirabelleWarning, match="_extra_state is no tensor and is not saved"):
        mb.save(trained, tmp_path / "saved")
    again = mb.load(tmp_path / "saved", Remembers())
    x = data[0][0]
    assert torch.equal(again.eval()(x), trained.eval()(x))


class Refuses(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("there is one of it")


def test_what_refuses_to_be_copied_is_named():
    with pytest.raises(InputError, match=r"a Sequential, cannot be copied.*there is one of it"):
        mb.fit(nn.Sequential(Refuses(3, 2)), [(torch.ones(2, 3), torch.zeros(2).long())])


def test_teachers_and_heads_with_locks():
    data = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    student = mb.distill(nn.Linear(3, 2), Holds(), data, steps=1, lr=0.1)
    assert bool(torch.isfinite(student(data[0][0])).all())


OUTPUTS = {
    "a mask": lambda y: y > 0,
    "whole numbers": lambda y: (10 * y).round().int(),
    "complex": lambda y: torch.complex(y, -y),
    "one number": lambda y: y.sum(),
    "nothing": lambda y: None,
    "text": lambda y: {"name": "x"},
}


class Gives(nn.Module):
    def __init__(self, form: str):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)
        )
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        return OUTPUTS[self.form](self.layers(x).mean((2, 3)))


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("verb", ["prune", "sparsify", "factorize", "distill", "measure"])
def test_outputs_of_any_type(verb, form):
    """The answer is a network, or says what the outputs are."""
    calls = {**VERBS, "distill": lambda m, d: mb.distill(m, Writes(), d, steps=2, lr=1e-3)}
    try:
        calls[verb](Gives(form).eval(), _data())
    except InputError as error:
        assert any(w in str(error) for w in ("output", "no channel", "the student gives ()"))
    else:
        assert form not in ("nothing", "text") or verb == "sparsify"


class _Broken:
    def __iter__(self):
        raise ValueError("the disk is gone")


@pytest.mark.parametrize(
    "call",
    [
        lambda m, d: mb.fit(m, d),  # which counts the batches, and holds some back
        lambda m, d: mb.measure(m, d),
        lambda m, d: mb.sparsify(m, sparsity=0.5, data=d),
        lambda m, d: mb.quantize(m, d),
        lambda m, d: mb.fit(m, _data(), steps=1, lr=0.1, checkpoint="x", validation=d),
    ],
    ids=["fit", "measure", "sparsify", "quantize", "validation"],
)
def test_loaders_that_fail_or_are_none(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="ValueError: the disk is gone"):
        call(Writes(), _Broken())
    with pytest.raises(InputError, match="is a int; expected a loader|validation is 3|data is 3"):
        call(Writes(), 3)
