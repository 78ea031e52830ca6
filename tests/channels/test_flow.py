"""What cannot be pruned is named and left alone; and sizes that are written into forward."""

import networks
import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.errors import MirabelleWarning, SurgeryError
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import remove
from tests.channels.equivalence import equivalent, some
from tests.channels.stuck import STUCK, stuck
from tests.modules import Head, Net, conv_bn, image


@pytest.mark.parametrize("name", STUCK)
def test_what_cannot_be_pruned_is_named_and_left_alone(name):
    model, reason = stuck(name)
    model = model.double()
    x = image().double()
    if name in ("a constant", "ones made in forward", "conv over channels"):
        model, x = model.float(), x.float()
    coupling = analyze(model, as_batch(x))
    explanation = explain(model, x)
    assert reason in str(explanation).replace("\n", " ") or any(
        reason in f.reason for f in coupling.frozen
    )
    assert any(
        reason in f.reason
        for f in coupling.frozen
        if f.parameter in ("a.0.weight", "a.weight", "w", "b.weight", "a.0.bias")
    )
    frozen = {(f.parameter, f.role) for f in coupling.frozen}
    assert ("a.0.weight", "out") in frozen or ("a.weight", "out") in frozen
    if hasattr(model, "z"):
        assert {g.name for g in coupling.groups} >= {"z.0", "b"} - (
            {"b"} if name == "matrix product" else set()
        ), "the rest goes on"
    removed = some(coupling, 0)
    small = remove(model, coupling, removed)
    if x.dtype == torch.float64:
        assert equivalent(model, small, coupling, removed)


def _mixed(y, samples):
    return y.view(samples, -1, 4, 8, 8).transpose(1, 2).reshape(samples, -1, 8, 8)


WRITTEN = {
    # Runs at half the channels and 4 samples: rows of two samples become one, and only the shape of
    # the output tells.
    "a view that eats the batch": Net(
        lambda s, x: s.a(x).mean((2, 3)).view(-1, 8).sum() + s.b(s.a(x)),
        a=conv_bn(3, 8),
        b=nn.Conv2d(8, 1, 1),
    ),
    "by sample": Net(
        lambda s, x: s.head(torch.cat([_mixed(s.g(s.a(x[i : i + 1])), 1) for i in range(len(x))])),
        a=conv_bn(3, 8),
        g=conv_bn(8, 16, groups=4),
        head=Head(16),
    ),
    # Runs at half the channels: 4 groups of 4 become 2 groups of 4. Nothing but the values tells.
    "silent": Net(
        lambda s, x: s.head(_mixed(s.g(s.a(x)), len(x))),
        a=conv_bn(3, 8),
        g=conv_bn(8, 16, groups=4),
        head=Head(16),
    ),
}


def test_a_size_that_hides_in_one_batch_is_found():
    model, inputs = networks.stir(WRITTEN["a view that eats the batch"]), as_batch(image(4))
    small = remove(model, coupling := analyze(model, inputs), some(coupling, 0))
    assert (
        isinstance(small, torch.fx.GraphModule)
        and small.eval()(image(7)).shape == model.eval()(image(7)).shape
    )


def test_a_size_that_only_values_tell_is_found_and_the_batch_stays_open():
    model, x = networks.stir(WRITTEN["silent"]).double(), image(4).double()
    coupling = analyze(model, as_batch(x))
    removed = some(coupling, 0)
    small = remove(model, coupling, removed)
    assert isinstance(small, torch.fx.GraphModule) and equivalent(model, small, coupling, removed)
    assert small(image(7).double()).shape == (7, 3)


def test_sizes_that_cannot_be_rewritten_are_not_cut_silently():
    """One operator after another for each sample: that graph is for so many samples alone."""
    model, inputs = networks.stir(WRITTEN["by sample"]), as_batch(image(4))
    coupling = analyze(model, inputs)
    with (
        pytest.warns(MirabelleWarning, match="depends on the number of samples"),
        pytest.raises(
            SurgeryError, match=r"for one sample more.*sizes written into it.*x\.shape.*keep="
        ),
    ):
        remove(model, coupling, some(coupling, 0))
