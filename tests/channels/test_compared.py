"""What surgery compares before it gives a network back: every type of output, on more than the
example.
"""

import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import remove
from mirabelle.graph.proof import difference, random_like
from tests.modules import Net

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def rolled(s, x):
    """The number 8 is written into forward: it is wrong once the halves have lost channels."""
    y = torch.relu(s.a(x))
    return s.b(torch.cat([y[:, 8:], y[:, :8]], 1))


def with_dead_channels(forward) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = Net(forward, a=nn.Conv2d(3, 16, 3, padding=1), b=nn.Conv2d(16, 8, 1)).eval()
    dead = torch.tensor([0, 1, 2, 9])
    with torch.no_grad():
        model.a.weight[dead] = 0
        model.a.bias[dead] = 0
    return model, dead


@pytest.mark.parametrize(
    "last",
    [
        lambda y: y,
        lambda y: y.argmax(1),
        lambda y: y > 0,
        lambda y: torch.complex(y, -y),
        lambda y: {"deep": [(y.argmax(1), 3)]},
        lambda y: (y.mean((2, 3)) * 100).round().int(),
    ],
)
@pytest.mark.parametrize("example", [X, torch.zeros_like(X)])
def test_dead_channels_rolled_by_a_number_go_without_a_trace(last, example):
    model, dead = with_dead_channels(lambda s, x: last(rolled(s, x)))
    small = remove(model, analyze(model, as_batch(example)), {"a": dead})
    assert small.a.out_channels == 12
    with torch.no_grad():
        assert difference(model(X), small(X)) is None


def test_an_output_without_a_finite_number_proves_nothing():
    model, dead = with_dead_channels(lambda s, x: rolled(s, x) * torch.nan)
    coupling = analyze(model, as_batch(X))
    with pytest.raises(InputError, match=r"\(2, 8, 6, 6\), holds no finite number"):
        remove(model, coupling, {"a": dead})


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (X, X.half(), "is of type torch.float16, expected torch.float32"),
        (X, torch.where(X > 2, torch.nan, X), "NaN or infinite"),
        (torch.where(X > 2, torch.nan, X), torch.where(X > 1, torch.nan, X), "NaN or infinite"),
        (torch.where(X > 2, torch.inf, X), torch.where(X > 2, -torch.inf, X), "NaN or infinite"),
        (torch.complex(X, X), torch.complex(X, -X), "differs by 1.4 of its size"),
        (X.argmax(1), X.roll(1, 1).argmax(1), "values (torch.int64)"),
        (X > 0, X > 0.01, "values (torch.bool)"),
        ([X, 3, "a"], [X, 4, "a"], "[4, 'a'], expected [3, 'a']"),
    ],
)
def test_every_type_is_compared(a, b, says):
    assert difference(a, a) is None and difference(b, b) is None
    assert says in difference(a, b)


def test_what_is_drawn_is_like_the_example():
    pixels = torch.tensor([[0.0, 100.0], [200.0, 300.0]]).repeat(1, 500)
    inputs = as_batch(
        {
            "pixels": pixels,
            "zeros": torch.zeros(2, 1000),
            "words": torch.tensor([[5, 9, 7]]).repeat(2, 99),
            "mask": torch.tensor([[True, False]]).repeat(2, 99),
        }
    )
    before = torch.random.get_rng_state()
    drawn = random_like(inputs).kwargs
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(drawn[n].dtype == t.dtype for n, t in inputs.kwargs.items())
    assert drawn["pixels"].mean() == pytest.approx(150, abs=15)
    assert drawn["zeros"].std() == pytest.approx(1, abs=0.1)
    assert drawn["words"].unique().tolist() == [5, 6, 7, 8, 9]
    assert drawn["mask"].unique().tolist() == [False, True]


def test_channels_whose_numbers_are_an_output_stay():
    """The number of the largest channel is another one where a channel before it has gone."""
    numbers = Net(lambda s, x: s.a(x).max(1), a=nn.Conv2d(3, 16, 1))
    assert not analyze(numbers, as_batch(X)).groups
    values = Net(
        lambda s, x: s.b(torch.relu(s.a(x)).max(1, keepdim=True)[0]),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(1, 2, 1),
    )
    frozen = {f.parameter: f.reason for f in analyze(numbers, as_batch(X)).frozen}
    assert "gives the numbers of channels" in frozen["a.weight"]
    assert all("numbers" not in f.reason for f in analyze(values, as_batch(X)).frozen)
