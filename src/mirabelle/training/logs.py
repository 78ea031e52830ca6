"""Where the figures of a training go: TensorBoard, MLflow and W&B, by their own packages.

A log is a function (step, figures) -> None; step counts the optimizer's.
"""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from mirabelle.base.errors import MissingRuntimeError, choose

EVERY = 50  # steps between two lines within an epoch
Log = Callable[[int, Mapping[str, float]], None]


def tensorboard(place: str) -> Log:
    """Event files in the folder `place`, `runs` where it is empty."""
    writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter(place or "runs")
    atexit.register(writer.close)

    def log(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def mlflow(place: str) -> Log:
    """The run that is active in MLflow; else a new one, of the experiment `place` where named."""
    package = _package("mlflow", "mlflow")
    if place and package.active_run() is None:
        package.set_experiment(place)

    def log(step: int, figures: Mapping[str, float]) -> None:
        package.log_metrics(dict(figures), step=step)

    return log


def wandb(place: str) -> Log:
    """The run that is open in W&B; else a new one, of the project `place` where named."""
    package = _package("wandb", "wandb")

    def log(step: int, figures: Mapping[str, float]) -> None:
        run = package.run or package.init(project=place or None)
        # Its own steps belong to whoever opened the run.
        run.log({**figures, "mirabelle/step": step})

    return log


LOGS: dict[str, Callable[[str], Log]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}


def logger(log: str | Callable | None) -> Log | None:
    """The log that a name stands for, such as `tensorboard` or `tensorboard:runs/small`; a function
    as it is. `InputError` for an unknown name, `MissingRuntimeError` for a missing package.
    """
    if log is None or callable(log):
        return log
    name, _, place = log.partition(":")
    return choose(name, LOGS, "log")(place)


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingRuntimeError(
            f"log={name!r} needs {name}, which cannot be imported ({error}); pip install {name}"
        ) from error
