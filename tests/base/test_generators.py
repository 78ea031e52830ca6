"""No verb changes a random generator: torch's, NumPy's, Python's, or a loader's own."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base.data import Generators, generators_of, preserved, seeded
from mirabelle.distillation import save_outputs
from tests.tiny import Noisy, model, teacher

X = torch.zeros(2, 1, 8, 8)


def states(loader=None) -> list:
    own = [g.get_state().tolist() for g in generators_of(loader)]
    numbers = np.random.get_state()
    return [torch.get_rng_state().tolist(), str(numbers), random.getstate(), own]


def loader() -> DataLoader:
    """Shuffled by a generator of its own; each reading draws from torch's global one too."""
    generator = torch.Generator().manual_seed(5)
    return DataLoader(Noisy(32), batch_size=8, shuffle=True, generator=generator)


def quantized(data) -> nn.Module:
    return mb.quantize(model().eval(), data, samples=16)


RECIPE = """\
version: 1
model: tests.tiny:model
data: tests.tiny:data
steps:
  - fit: {epochs: 1, lr: 0.01}
"""


def _run(data, folder) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    mb.run(folder / "recipe.yaml", folder=folder / "run")


def _export(data, folder):
    return mb.export(model().eval(), folder, runtime="onnxruntime", inputs=X)


VERBS = {
    "fit": lambda data, folder: mb.fit(model(), data, lr=0.01),
    "fit, steps": lambda data, folder: mb.fit(model(), data, steps=6, lr=0.01, checkpoint=folder),
    "fit, sparser": lambda data, folder: mb.fit(
        model(), data, lr=0.01, sparsify={"sparsity": 0.5, "criterion": "taylor", "data": data}
    ),
    "distill": lambda data, folder: mb.distill(model(), teacher(), data, lr=0.01),
    "distill, cached": lambda data, folder: mb.distill(
        model(), teacher(), data, lr=0.01, views=1, cache=folder, epochs=2
    ),
    "save_outputs": lambda data, folder: save_outputs(folder / "a.safetensors", data, teacher()),
    "prune": lambda data, folder: mb.prune(model().eval(), X, macs=0.7, align=1, data=data),
    "prune, steps": lambda data, folder: mb.prune(
        model().eval(),
        X,
        macs=0.7,
        align=1,
        data=data,
        rounds=2,
        train={"lr": 0.01},
        criterion="random",
    ),
    "factorize": lambda data, folder: mb.factorize(model().eval(), X, rank=2, data=data),
    "sparsify": lambda data, folder: mb.sparsify(
        model().eval(), sparsity=0.5, data=data, criterion="random"
    ),
    "quantize": lambda data, folder: quantized(data),
    "explain": lambda data, folder: mb.explain(model().eval(), X),
    "export": _export,
    "measure": lambda data, folder: mb.measure(model().eval(), data, inputs=X),
    "verify": lambda data, folder: mb.verify(
        q := quantized(data), mb.export(q, folder, runtime="onnxruntime", inputs=X), data
    ),
    "save and load": lambda data, folder: mb.load(
        mb.save(model().eval(), folder / "saved"), model()
    ),
    "run": _run,
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_changes_a_generator(verb, tmp_path, monkeypatch):
    data = loader()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    before = states(data)
    VERBS[verb](data, tmp_path)
    assert states(data) == before


def test_draws_after_two_seeds_differ():
    """What the user draws after a verb depends on the user's own seed, not on the verb's."""
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        mb.prune(model().eval(), X, macs=0.7, align=1, criterion="random")
        drawn.append(torch.randn(3))
    assert not torch.equal(*drawn)


def test_seeded_restores_after_an_error_too():
    data = loader()
    before = states(data)
    with pytest.raises(KeyError), seeded(3, data):
        inside = torch.randn(2)
        next(iter(data))
        raise KeyError
    assert states(data) == before
    with preserved():
        torch.manual_seed(3)
        assert torch.equal(inside, torch.randn(2))
    kept = Generators(data)
    list(data)
    kept.restore()
    assert states(data) == before
