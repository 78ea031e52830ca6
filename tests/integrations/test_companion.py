"""What goes beside a training that is not ours, in loops that call hooks in the documented order:
neither Lightning nor transformers is needed.
"""

import sys

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError, LimitError
from mirabelle.integrations.companion import companion
from mirabelle.integrations.lightning import Hooks as LightningHooks
from mirabelle.integrations.transformers import Hooks as TrainerHooks
from mirabelle.sparsity import masks
from mirabelle.training.optimizers import adamw, parameter_groups
from tests.integrations.trainers import (
    OPTIONS,
    Module,
    Teller,
    arguments,
    data,
    fit_by_hooks,
    network,
    same,
    sparse,
    train_by_hooks,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_loop_of_ones_own_gives_the_loops_weights():
    start = sparse()
    own, keep = sparse(), companion()
    keep.start(own, total=6)
    optimizer = adamw(parameter_groups(own, 1e-4), 1e-2, 1e-4)
    own.train()
    for step, (x, y) in enumerate([*data(), *data()]):
        keep.before_step(step)
        nn.functional.cross_entropy(own(x), y).backward()
        nn.utils.clip_grad_norm_(own.parameters(), 0.5)
        optimizer.step()
        keep.after_step()
        optimizer.zero_grad()
    keep.close()
    assert same(own, mb.fit(start, data(), epochs=2, clip=0.5, **OPTIONS))
    assert all(not h for m in own.modules() for h in (m._forward_hooks, m._forward_pre_hooks))


def test_zeros_do_not_stay_without_it():
    """So that the test above can fail."""
    own = sparse()
    optimizer = adamw(parameter_groups(own, 1e-4), 1e-2, 1e-4)
    before = sum(int(m.sum()) for m in masks.zeros(own).values())
    x, y = data()[0]
    nn.functional.cross_entropy(own(x), y).backward()
    optimizer.step()
    assert sum(int(m.sum()) for m in masks.zeros(own).values()) < before


@pytest.mark.parametrize("losses", [{"kd": 1.0}, {"kd": 0.5, "labels": 1.0}], ids=str)
@pytest.mark.parametrize("trainer", [fit_by_hooks, train_by_hooks])
def test_a_teachers_losses_are_those_of_distill(trainer, losses):
    teacher = network(5)
    options = {"teacher": teacher, "losses": losses, "temperature": 2.0}
    own = trainer(sparse(), companion(**options))
    ours = mb.distill(
        sparse(), teacher, data(), losses=losses, temperature=2.0, epochs=2, **OPTIONS
    )
    assert same(own, ours)
    assert same(teacher, network(5))


@pytest.mark.parametrize("trainer", [fit_by_hooks, train_by_hooks])
def test_zeros_become_more_as_in_fit(trainer):
    more = {"sparsity": 0.8, "cuts": 3}
    own = trainer(network(), companion(sparsify=more))
    assert same(own, mb.fit(network(), data(), epochs=2, sparsify=more, **OPTIONS))
    assert masks.blocks(own)


@pytest.mark.parametrize("trainer", [fit_by_hooks, train_by_hooks])
def test_quantized_networks_train_as_in_fit(trainer):
    q = mb.quantize(network(), data())
    ours = mb.fit(q, data(), epochs=2, **OPTIONS)
    assert same(trainer(q, companion()), ours)


def test_batchnorm_that_is_frozen_keeps_its_statistics():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    frozen = fit_by_hooks(mb.base.checks.clone(net), companion(batchnorm="freeze"))
    followed = fit_by_hooks(mb.base.checks.clone(net), companion())
    assert torch.equal(frozen[1].running_mean, net[1].running_mean)
    assert not torch.equal(followed[1].running_mean, net[1].running_mean)


def test_accumulated_steps_count_the_teachers_losses_once():
    """A network that divides its loss by the items of the whole step, as language models do."""
    losses = {"kd": 1.0, "labels": 1.0}
    teacher = network(5)
    keep = companion(teacher=teacher, losses=losses)
    own = train_by_hooks(network(), keep, accumulate=3, items=True)
    ours = mb.distill(network(), teacher, data(), losses=losses, epochs=2, accumulate=3, **OPTIONS)
    for a, b in zip(own.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_losses_from_outside_the_network_are_joined_too():
    teacher, losses = network(5), {"kd": 0.5, "labels": 1.0}
    keep = companion(teacher=teacher, losses=losses)
    own = train_by_hooks(sparse(), keep, outside=True)
    assert same(own, mb.distill(sparse(), teacher, data(), losses=losses, epochs=2, **OPTIONS))


def test_limits_are_checked_at_the_end():
    hooks = LightningHooks(companion(limits=["val_accuracy >= 0.9", "loss <= 2"]), None)
    fit_by_hooks(network(), hooks=hooks, metrics={"val_accuracy": 0.95, "loss": 1.0})
    with pytest.raises(LimitError, match=r"val_accuracy is 0\.5, the limit is >= 0\.9"):
        fit_by_hooks(network(), hooks=hooks, metrics={"val_accuracy": 0.5, "loss": 1.0})
    with pytest.raises(LimitError, match="loss is nan"):
        fit_by_hooks(network(), hooks=hooks, metrics={"val_accuracy": 0.95, "loss": float("nan")})
    with pytest.raises(InputError, match="not logged; did you mean 'val_acuracy'"):
        fit_by_hooks(network(), hooks=hooks, metrics={"val_acuracy": 0.9, "loss": 1.0})
    trainer = TrainerHooks(companion(limits=["mirabelle/sparsity >= 0.9"]))
    with pytest.raises(LimitError, match="sparsity is 0.5"):
        train_by_hooks(sparse(), hooks=trainer)


def test_figures_reach_the_trainers_loggers_and_ours():
    lines = []
    keep = companion(
        teacher=network(5), losses={"kd": 1.0}, log=lambda step, found: lines.append((step, found))
    )
    logged: dict = {}
    fit_by_hooks(sparse(), hooks=LightningHooks(keep, None), logged=logged)
    assert set(logged) == {"mirabelle/kd", "mirabelle/sparsity"}
    assert [step for step, _ in lines] == [3, 6]
    assert lines[-1][1]["mirabelle/sparsity"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": network()}, "belong together"),
        ({"losses": {"kd": 1.0}}, "belong together"),
        ({"teacher": network(), "losses": {"kdd": 1.0}}, "did you mean 'kd'"),
        ({"teacher": network(), "losses": {"head": 1.0}}, "head"),
        ({"limits": ["accuracy > 0.9"]}, "'val_accuracy >= 0.9'"),
        ({"limits": ["accuracy >= good"]}, "'val_accuracy >= 0.9'"),
        ({"sparsify": {"sparsity": 2}}, "sparsity is 2"),
        ({"batchnorm": "still"}, "batchnorm is 'still'"),
        ({"log": "tensorbord"}, "did you mean 'tensorboard'"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_options_are_checked_before_anything_runs(options, message):
    with pytest.raises(InputError, match=message):
        companion(**options)


def test_what_cannot_be_taught_says_so():
    keep = companion(teacher=nn.Linear(6, 5), losses={"dist": 1.0})
    with pytest.raises(InputError, match=r"\(2, 3\).*\(2, 5\)|\(.*3\).*\(.*5\)"):
        fit_by_hooks(network(), keep)
    hooks = TrainerHooks(companion(teacher=network(5), losses={"kd": 1.0}))
    silent = Teller(network(), silent=True)
    hooks.on_train_begin(**arguments(silent))
    with pytest.raises(InputError, match="gives no loss"):
        silent.train()(x=data()[0][0], labels=data()[0][1])
    hooks.on_train_end(**arguments(silent))


def test_the_network_of_a_module_is_named_where_there_are_several():
    module = Module(network())
    module.other = nn.Linear(2, 2)
    hooks = LightningHooks(companion(), None)
    with pytest.raises(InputError, match=r"2 children with parameters \(model, other\)"):
        fit_by_hooks(module=module, hooks=hooks)
    hooks = LightningHooks(companion(), "modl")
    with pytest.raises(InputError, match="did you mean 'model'"):
        fit_by_hooks(module=module, hooks=hooks)
    idle = LightningHooks(companion(teacher=network(5), losses={"kd": 1.0}), "other")
    with pytest.raises(InputError, match="did not run in the training step"):
        fit_by_hooks(module=module, hooks=idle)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_package_is_named_with_its_line(name, monkeypatch):
    for module in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(mb.MissingRuntimeError, match=rf"pip install 'mirabelle\[{name}\]'"):
        getattr(mb.integrations, name).callback()
