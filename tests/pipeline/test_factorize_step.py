"""The step `factorize` of recipes."""

from types import SimpleNamespace

import pytest
import torch

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.pipeline.recipe import parse
from mirabelle.pipeline.steps import LABELS, STEPS
from tests import tiny

CONTENT = {"version": 1, "model": "tests.tiny:model", "data": "tests.tiny:data"}


def parsed(*steps):
    return parse({**CONTENT, "steps": list(steps)}, "r.yaml").steps


def test_layers_become_two(tmp_path):
    (step,) = parsed({"factorize": {"rank": 2, "keep": ["3"]}})
    x = torch.randn(8, 1, 8, 8)
    loaders = SimpleNamespace(train=[x])
    state = SimpleNamespace(model=tiny.model().eval(), inputs=Batch((x[:1],), {}, None))
    state.loaders = loaders
    small = STEPS["factorize"](state, step.options, tmp_path, tmp_path).model
    assert small[9].rank == 2 and isinstance(small[3], torch.nn.Conv2d)
    assert LABELS["factorize"] == "factorized"


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ([{"factorize": {}}], "exactly one of rank"),
        ([{"factorize": {"rank": 2, "macs": 0.5}}], "exactly one of rank"),
        (["quantize", {"factorize": {"rank": 2}}], "factorize first"),
        ([{"sparsify": {"sparsity": 0.5}}, {"factorize": {"rank": 2}}], "factorize first"),
        ([{"factorize": {"ranks": 2}}], "did you mean 'rank'"),
    ],
)
def test_what_cannot_be(steps, word):
    with pytest.raises(InputError, match=word):
        parsed(*steps)
