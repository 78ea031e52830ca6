"""Small networks with labeled data, and their scores."""

import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.channels.groups import Group, analyze
from mirabelle.pruning.criteria import CRITERIA, group_scores
from mirabelle.pruning.stats import Stats, collect
from tests.modules import Head, Net, image


def labeled(
    count: int = 3, n: int = 8, classes: int = 3, size: int = 8, dtype=torch.float32
) -> list:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, 3, size, size, generator=generator).to(dtype),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for _ in range(count)
    ]


def tiny() -> tuple[nn.Module, Group, Stats]:
    """Two coupled 1x1 convolutions of two filters over two channels, BatchNorm behind the first."""
    model = Net(
        lambda s, x: s.head(s.bn(s.a(x)) + s.b(x)),
        a=nn.Conv2d(2, 2, 1, bias=False),
        bn=nn.BatchNorm2d(2),
        b=nn.Conv2d(2, 2, 1),
        head=Head(2),
    )
    model.a.weight.data = torch.tensor([[3.0, -4.0], [1.0, 0.0]]).view(2, 2, 1, 1)
    model.b.weight.data = torch.tensor([[1.0, 1.0], [-2.0, 2.0]]).view(2, 2, 1, 1)
    model.bn.weight.data = torch.tensor([0.5, -2.0])
    (group,) = (coupling := analyze(model, as_batch(image(channels=2)))).groups
    return model, group, collect(model, coupling, None, None, needs_gradients=False)


def scored(name: str, group: Group, stats: Stats, **options) -> torch.Tensor:
    """The scores of a criterion with its defaults, or with `normalize` and `aggregate`."""
    return group_scores(
        name, CRITERIA[name], group, stats, options.get("normalize"), options.get("aggregate")
    )
