"""Where the figures of a training go; packages are stood in for by what is called of them."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError, MissingRuntimeError

DATA = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))] * 5
OPTIONS = {"lr": 0.1, "schedule": "constant", "precision": "float32"}


def fit(log, **options):
    torch.manual_seed(0)
    return mb.fit(nn.Linear(3, 2), DATA, log=log, **{**OPTIONS, **options})


def test_a_function_gets_every_epoch_and_every_fiftieth_step():
    lines = []
    fit(lambda step, figures: lines.append((step, dict(figures))), epochs=11)
    assert [step for step, _ in lines] == [5 * i for i in range(1, 10)] + [50, 50, 55]
    by_step = [f for s, f in lines if s == 50]
    assert set(by_step[0]) == {"loss", "lr"} and set(by_step[1]) == {"epoch/loss", "lr"}
    assert by_step[0]["loss"] == by_step[1]["epoch/loss"] < lines[0][1]["epoch/loss"]
    assert by_step[0]["lr"] == 0.1


def test_a_log_changes_no_weight():
    assert torch.equal(fit(lambda *_: torch.rand(3)).weight, fit(None).weight)


def test_tensorboard_mlflow_and_wandb_get_the_figures(monkeypatch):
    got: list = []

    class Writer:
        def __init__(self, folder):
            got.append(folder)

        def add_scalar(self, name, value, step):
            got.append((name, step))

        def flush(self):
            pass

        close = flush

    run = SimpleNamespace(log=lambda figures: got.append(("wandb", figures["mirabelle/step"])))
    modules = {
        "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=Writer),
        "mlflow": SimpleNamespace(
            active_run=lambda: None,
            set_experiment=lambda name: got.append(("experiment", name)),
            log_metrics=lambda figures, step: got.append(("mlflow", step, sorted(figures))),
        ),
        "wandb": SimpleNamespace(run=None, init=lambda project: got.append(project) or run),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    fit("tensorboard:here")
    assert got == ["here", ("epoch/loss", 5), ("lr", 5)]
    got.clear()
    fit("mlflow:small")
    assert got == [("experiment", "small"), ("mlflow", 5, ["epoch/loss", "lr"])]
    got.clear()
    fit("wandb:small")
    assert got == ["small", ("wandb", 5)]


def test_a_missing_package_and_an_unknown_name_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingRuntimeError, match="pip install mlflow"):
        fit("mlflow")
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        fit("wandbb:project")
