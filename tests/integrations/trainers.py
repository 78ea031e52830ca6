"""A small network, and two trainers that call hooks in the order that Lightning and Hugging Face's
Trainer document, for where these are not installed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import mirabelle as mb
from mirabelle.integrations.companion import Companion, companion
from mirabelle.integrations.lightning import Hooks as LightningHooks
from mirabelle.integrations.transformers import Hooks as TrainerHooks
from mirabelle.training.optimizers import adamw, parameter_groups

OPTIONS: dict[str, Any] = {"lr": 1e-2, "schedule": "constant", "precision": "float32"}
CLASSES = 3


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network().eval()


def sparse() -> nn.Module:
    return mb.sparsify(network(), sparsity=0.5, criterion="magnitude", repair=None)


def data(count: int = 3, size: int = 8) -> list:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=g), torch.randint(0, CLASSES, (size,), generator=g))
        for _ in range(count)
    ]


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(parameter_groups(model, 1e-4), OPTIONS["lr"], 1e-4)


class Module(nn.Module):
    """As much of a LightningModule as a callback touches."""

    automatic_optimization = True

    def __init__(self, model: nn.Module, logged: dict | None = None):
        super().__init__()
        self.model = model
        self.logged = {} if logged is None else logged

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def log_dict(self, figures: dict) -> None:
        self.logged.update(figures)


def fit_by_hooks(
    model: nn.Module | None = None,
    company: Companion | None = None,
    *,
    module: Module | None = None,
    hooks: Any = None,
    metrics: dict | None = None,
    logged: dict | None = None,
    epochs: int = 2,
) -> nn.Module:
    """Lightning's order: lightning.ai/docs/pytorch/stable/common/lightning_module.html#hooks."""
    module = module or Module(model, logged)
    hooks = hooks or LightningHooks(company or companion(), None)
    batches = data()
    trainer = SimpleNamespace(
        estimated_stepping_batches=epochs * len(batches),
        train_dataloader=batches,
        global_step=0,
        callback_metrics={k: torch.tensor(v) for k, v in (metrics or {}).items()},
    )
    optimizer = optimizer_of(module)
    module.train()
    try:
        hooks.on_train_start(trainer, module)
        for _ in range(epochs):
            for i, batch in enumerate(batches):
                hooks.on_train_batch_start(trainer, module, batch, i)
                loss = module.training_step(batch, i)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                trainer.global_step += 1
                hooks.on_train_batch_end(trainer, module, loss, batch, i)
            hooks.on_train_epoch_end(trainer, module)
        hooks.on_train_end(trainer, module)
    except Exception as error:
        hooks.on_exception(trainer, module, error)
        raise
    hooks.on_fit_end(trainer, module)
    return module.model


class Teller(nn.Module):
    """As Hugging Face's networks it computes its loss itself where labels come along."""

    def __init__(self, model: nn.Module, silent: bool = False):
        super().__init__()
        self.model, self.silent = model, silent

    def forward(self, x: Any, labels: Any = None, num_items_in_batch: Any = None) -> dict:
        logits = self.model(x)
        if labels is None or self.silent:
            return {"logits": logits}
        if num_items_in_batch is None:
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
        return {"loss": loss, "logits": logits}


def train_by_hooks(
    model: nn.Module,
    company: Companion | None = None,
    *,
    hooks: Any = None,
    outside: bool = False,
    accumulate: int = 1,
    items: bool = False,
    epochs: int = 2,
) -> nn.Module:
    """The order of Hugging Face's Trainer: its callbacks' documentation."""
    hooks = hooks or TrainerHooks(company or companion())
    teller = Teller(model, silent=outside)
    batches = data()
    given = arguments(teller, epochs * -(-len(batches) // accumulate), accumulate)
    loss_of = hooks.compute_loss(nn.functional.cross_entropy) if outside else None
    optimizer = optimizer_of(teller)
    hooks.on_train_begin(**given)
    for _ in range(epochs):
        for i, (x, y) in enumerate(batches):
            if i % accumulate == 0:
                hooks.on_step_begin(**given)
            teller.train()
            counted = len(y) * accumulate if items else None
            if loss_of is not None:
                loss = loss_of(teller(x=x)["logits"], y)
            else:
                loss = teller(x=x, labels=y, num_items_in_batch=counted)["loss"]
                loss = loss if items else loss / accumulate
            loss.backward()
            if (i + 1) % accumulate == 0 or i + 1 == len(batches):
                optimizer.step()
                teller.zero_grad()
                given["state"].global_step += 1
                hooks.on_step_end(**given)
                hooks.on_log(**given, logs={"loss": loss.item()})
    hooks.on_train_end(**given)
    return model


def arguments(model: nn.Module, steps: int = 6, accumulate: int = 1) -> dict[str, Any]:
    """What the Trainer gives to every event."""
    return {
        "args": SimpleNamespace(gradient_accumulation_steps=accumulate, world_size=1),
        "state": SimpleNamespace(max_steps=steps, global_step=0, is_world_process_zero=True),
        "control": SimpleNamespace(),
        "model": model,
        "train_dataloader": data(),
    }
