"""What a message shows, where a warning points, what interrupts a loop, and which loaders a
function brings along.
"""

import time
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base import interruption
from mirabelle.base.data import batches
from mirabelle.base.errors import InputError
from mirabelle.base.identity import function_identity
from mirabelle.base.options import shown


def test_a_bomb_of_aliases_is_shown_at_once():
    bomb: list = ["x"]
    for _ in range(40):
        bomb = [bomb] * 10
    prune = mb.prune  # imported
    begun = time.process_time()
    text = shown({"a": bomb})
    with pytest.raises(InputError, match="macs is"):
        prune(nn.Linear(2, 2), torch.ones(1, 2), macs=bomb)  # type: ignore[arg-type]
    assert time.process_time() - begun < 2 and len(text) <= 100
    myself: dict = {}
    myself["me"] = myself
    assert "..." in shown(myself)


@pytest.mark.parametrize(
    "value", ["text", 3, 2.5, True, None, [1, "a"], {"b": 1, "a": [0.5]}, (1,), {}, []]
)
def test_what_people_write_is_shown_as_they_wrote_it(value):
    assert shown(value) == repr(value)


def test_huge_numbers_and_objects_are_brief():
    assert shown(10**5000) == "a int" or len(shown(10**5000)) <= 100
    assert shown([nn.Linear(1, 1)]) == "[a Linear]"


def test_a_warning_points_at_the_line_of_the_caller():
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(10)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mb.fit(nn.Linear(4, 3), data, steps=4, lr=1e4, holdout=0.2)
    ours = [w for w in caught if "worse on data" in str(w.message)]
    assert ours and ours[0].category is mb.MirabelleWarning
    assert all(w.filename == __file__ for w in ours)


def test_loops_over_data_without_a_bar_hear_an_interruption(monkeypatch):
    seen = 0
    with pytest.raises(KeyboardInterrupt):
        for _ in batches([torch.ones(1, 2)] * 10):
            seen += 1
            if seen == 3:  # as where a callback of a weak reference has swallowed it
                monkeypatch.setattr(interruption, "_pending", KeyboardInterrupt)
    assert seen == 3


def _trains_on(loader):
    return lambda network: mb.fit(network, loader, lr=0.1)


def test_the_loaders_that_a_function_encloses_tell_it_from_others():
    a = DataLoader(list(torch.arange(8.0)[:, None]), batch_size=2)  # type: ignore[arg-type]
    b = DataLoader(list(torch.arange(1, 9.0)[:, None]), batch_size=2)  # type: ignore[arg-type]
    assert function_identity(_trains_on(a)) == function_identity(_trains_on(a))
    assert function_identity(_trains_on(a)) != function_identity(_trains_on(b))
    one, other = ([(torch.full((2, 3), v), torch.zeros(2))] for v in (1.0, 2.0))
    assert function_identity(_trains_on(one)) != function_identity(_trains_on(other))
    state: list = []
    before = function_identity(_trains_on(state))
    state.append("what a function leaves behind")
    assert function_identity(_trains_on(state)) == before
