"""What the steps of a run pass on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.base.data import Batch, seed_epoch
from mirabelle.pipeline.looks import Looks
from mirabelle.pipeline.recipe import Recipe
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.runtimes.artifact import Artifact
from mirabelle.sources.callables import Loaders
from mirabelle.sources.preprocessing import Preprocessing


@dataclass(frozen=True)
class Stage:
    """The network as it is after a step that changed it. others: by runtime, where that has grids
    of its own.
    """

    name: str
    label: str
    model: nn.Module
    others: Mapping[str, nn.Module] = field(default_factory=dict)

    def on(self, runtime: str) -> nn.Module:
        """The network whose files a runtime gets."""
        return self.others.get(runtime, self.model)


@dataclass
class State:
    """What steps pass on. looks: what accuracy is left, on data that choose. saved: where the last
    network that a step changed is. exported: where the export step put the files of each stage.
    failed: by runtime, why it has no files. stopped: why the run ended before its last step.
    source: the ONNX file that the original came from. how: how pictures are brought to the network;
    classes: their names, where they are known. unpruned: what saved networks are loaded into, where
    the run started from a saved one; else it is the original.
    """

    recipe: Recipe
    loaders: Loaders
    example: Batch
    stages: list[Stage]
    looks: Looks
    saved: Path | None = None
    exported: Path | None = None
    runtimes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    stopped: str | None = None
    source: Path | None = None
    how: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    unpruned: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        return self.stages[-1].model

    @property
    def data(self) -> Iterable | None:
        """What cuts learn from; None where there are no data."""
        return self.loaders.train if self.recipe.has_data else None

    @property
    def inputs(self) -> Any:
        return self.example.kwargs or self.example.args

    def file(self, stage: str, runtime: str) -> Path:
        assert self.exported is not None
        folder, suffix = self.exported / stage / runtime, RUNTIMES[runtime].suffix
        path = folder / f"model{suffix}"
        if path.is_file():
            return path
        # a file that was handed on keeps its name
        return next(iter(sorted(folder.glob(f"*{suffix}"))), path)

    def artifact(self, stage: str, runtime: str) -> Artifact:
        return load(self.file(stage, runtime), runtime, self.threads)


@dataclass(frozen=True)
class Outcome:
    """facts: the same for every run with the same key. timings: of this run. model: where the step
    changed the network; others: the same with other grids, in the order of `grids_of`.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None
    others: list[nn.Module] = field(default_factory=list)


def seed_loaders(state: State) -> None:
    """What a step draws must not depend on whether the steps before it ran now or long ago."""
    for loader in vars(state.loaders).values():
        seed_epoch(loader, state.recipe.seed)
