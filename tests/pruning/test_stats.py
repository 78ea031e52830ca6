"""Statistics of one pass: products, squares and changes, against autograd."""

import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.channels.groups import analyze
from mirabelle.pruning import prune
from mirabelle.pruning.stats import collect
from tests.networks import make
from tests.pruning.labeled import labeled, scored


def test_fisher_is_summed_over_samples_and_not_overwritten():
    """Each sample by itself, all of them counted, whatever the batches: the gradient of a batch of
    two would have canceled.
    """
    model, x = make("residual")
    model.eval()
    data = labeled(count=2, n=4, dtype=torch.float64)
    coupling = analyze(model, as_batch(x))
    stats = collect(model, coupling, data, None, needs_gradients=True, by_sample=True)
    gated, changes = Gated(model), []
    for inputs, target in data:
        for i in range(4):
            loss = nn.functional.cross_entropy(gated(inputs[i : i + 1]), target[i : i + 1])
            changes.append(torch.autograd.grad(loss, gated.gate)[0])
    group = next(g for g in coupling.groups if g.name == "a.0")
    torch.testing.assert_close(
        scored("fisher", group, stats),
        (torch.stack(changes) ** 2).mean(0).float() / 2,
        rtol=1e-4,
        atol=1e-12,
    )
    assert stats.changes["a.0"].shape == (8, 8)
    one = [tuple(torch.cat(parts) for parts in zip(*data))]
    again = collect(model, coupling, one, None, needs_gradients=True, by_sample=True)
    torch.testing.assert_close(scored("fisher", group, stats), scored("fisher", group, again))


def test_changes_are_the_gradient_of_a_gate():
    model, x = make("residual")
    model.eval()
    data = labeled(dtype=torch.float64)
    coupling = analyze(model, as_batch(x))
    stats = collect(model, coupling, data, None, needs_gradients=True)
    gated = Gated(model)
    weights = []
    for i, (inputs, target) in enumerate(data):
        loss = nn.functional.cross_entropy(gated(inputs), target)
        (gradient,) = torch.autograd.grad(loss, gated.gate, retain_graph=True)
        weights.append(torch.autograd.grad(loss, model.b[0].weight)[0])
        # The change of the loss to first order, when a gate goes from 1 to 0.
        torch.testing.assert_close(
            stats.changes["a.0"][i].double(), -gradient, rtol=1e-5, atol=1e-8
        )
    torch.testing.assert_close(stats.gradients["b.0.weight"], torch.stack(weights).mean(0))
    assert stats.changes["a.0"].shape == (3, 8) and stats.changes["b.0"].shape == (3, 6)


def test_collecting_leaves_the_network_alone():
    model, x = make("residual", torch.float32)
    model.train()
    model.a[0].weight.requires_grad_(False)
    model.fresh = nn.Parameter(torch.ones(1))
    model.fresh.grad = torch.full((1,), 7.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prune(model, x, macs=0.6, data=labeled(), samples=16, align=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(m.training for m in model.modules())
    assert not model.a[0].weight.requires_grad and model.b[0].weight.requires_grad
    assert model.fresh.grad.item() == 7 and model.b[0].weight.grad is None


def test_products_and_squares_are_those_of_weights_and_their_gradients():
    model, x = make("residual")
    model.eval()
    data = labeled(count=2, dtype=torch.float64)
    coupling = analyze(model, as_batch(x))
    stats = collect(model, coupling, data, None, needs_gradients=True)
    group = next(g for g in coupling.groups if g.name == "b.0")
    inside, outside, gate = [], [], []
    for inputs, target in data:
        loss = nn.functional.cross_entropy(model(inputs), target)
        bn = model.b[1]
        dw, dgamma, dbeta = torch.autograd.grad(loss, [model.b[0].weight, bn.weight, bn.bias])
        product = model.b[0].weight * dw
        inside.append(product.sum((1, 2, 3)) ** 2)
        outside.append((product**2).sum((1, 2, 3)))
        gate.append((bn.weight * dgamma + bn.bias * dbeta) ** 2)
    for name, rows in (("taylor_filter", inside), ("taylor_squares", outside), ("taylor_bn", gate)):
        torch.testing.assert_close(
            scored(name, group, stats), torch.stack(rows).mean(0).float(), rtol=1e-4, atol=1e-12
        )


class Gated(nn.Module):
    """The residual network of `networks`, with a gate for each channel of the stream where it is
    read: by b and by the head.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.gate = model, nn.Parameter(torch.ones(8, dtype=torch.float64))

    def forward(self, x):
        s, gate = self.model, self.gate.view(8, 1, 1)
        y = torch.relu(s.a(x))
        return s.head(torch.relu(y + s.c(torch.relu(s.b(y * gate)))) * gate)
