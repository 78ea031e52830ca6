"""A callback for Lightning: `Trainer(callbacks=[mb.integrations.lightning.callback(...)])`."""

from __future__ import annotations

import functools
import sys
from typing import Annotated, Any

import torch
from torch import nn
from typing_extensions import Doc

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.options import declared
from mirabelle.integrations.companion import Companion, companion
from mirabelle.runtimes.artifact import require

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # two names of one package


class Hooks:
    """What the callback does at each of Lightning's hooks, which say when they are called."""

    def __init__(self, company: Companion, network: str | None):
        self.company, self.path = company, network
        self._wrapped: Any = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        network = network_of(module, self.path)
        self.company.start(
            network,
            int(trainer.estimated_stepping_batches),
            trainer.train_dataloader,
            int(trainer.global_step),
        )
        if self.company.teaches:
            if not module.automatic_optimization:
                raise InputError(
                    "a teacher's losses join what training_step returns, and this module "
                    "optimizes by hand; call mb.integrations.companion in its training_step"
                )
            self.company.watch()
            self._wrap(module)

    def _wrap(self, module: Any) -> None:
        """`training_step` returns its loss with the teacher's."""
        own = module.training_step

        @functools.wraps(own)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self.company.calls = []
            found = own(*args, **kwargs)
            if isinstance(found, torch.Tensor):
                return self.company.loss(found)
            if isinstance(found, dict) and "loss" in found:
                return {**found, "loss": self.company.loss(found["loss"])}
            return found  # None: Lightning leaves the batch out

        module.training_step = training_step
        self._wrapped = module

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.company.before_step(int(trainer.global_step))

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.company.after_step()
        self.company.done = int(trainer.global_step)
        if self.company.parts:
            module.log_dict({f"mirabelle/{n}": v for n, v in self.company.parts.items()})

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if figures := self.company.log():
            module.log_dict(figures)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._unwrap()

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """The last hook: checkpoints are written."""
        figures = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.company.check(figures)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._unwrap()

    def _unwrap(self) -> None:
        if self._wrapped is not None:
            del self._wrapped.training_step  # that of its class is under it
            self._wrapped = None
        self.company.close()


def network_of(module: nn.Module, path: str | None) -> nn.Module:
    """The network inside a LightningModule. `InputError` where it is not clear which it is.

    path: such as `model`; None is the only child that has parameters.
    """
    children = {n: m for n, m in module.named_children() if any(True for _ in m.parameters())}
    if path is None:
        if len(children) == 1:
            return next(iter(children.values()))
        raise InputError(
            f"{type(module).__name__} has {len(children)} children with parameters "
            f"({', '.join(children) or 'none'}); say with network= which one is meant"
        )
    named = dict(module.named_modules())
    if not path or path not in named:
        raise InputError(
            f"network is {path!r}, which is no module of {type(module).__name__}"
            f"{did_you_mean(path, [*children])}"
        )
    return named[path]


@declared(rest=companion)
def callback(
    *,
    network: Annotated[
        str | None,
        Doc("the network's path in the LightningModule; None is its only child with parameters"),
    ] = None,
    **options: Any,
) -> Any:
    """A Lightning callback that keeps zeros zero, adds a teacher's losses and checks limits.

    options: those of `mirabelle.integrations.companion`.
    The figures go through `log_dict` to the trainer's own loggers: TensorBoard, MLflow, W&B.
    Raises `MissingRuntimeError` without Lightning.
    Example:

        keep = mb.integrations.lightning.callback(
            teacher=big, losses={"kd": 1.0, "labels": 1.0}, limits=["val_accuracy >= 0.9"])
        L.Trainer(max_epochs=3, callbacks=[keep]).fit(module, loader)
    """
    loaded = [name for name in PACKAGES if name in sys.modules]
    base = require(loaded[0] if loaded else PACKAGES[0], "lightning").Callback
    made = type("MirabelleCallback", (Hooks, base), {})
    return made(companion(**options), network)
