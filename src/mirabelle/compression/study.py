"""A study of Optuna (Akiba et al. 2019). Its journal in the study's folder is all that processes
and machines need to work together.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirabelle.compression.front import Point

if TYPE_CHECKING:
    import optuna

NAME = "compress"
STARTUP = 6  # trials that are drawn at random
POINT = "point "  # the beginning of attributes of the study, one for each network that was judged
WORKER = "worker"  # the attribute of a trial that says who is at work on it


class Study:
    """Trials, and what they have found. folder: of the journal."""

    def __init__(self, folder: Path, seed: int):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, of what may change in it
            options: dict[str, Any] = {"study_name": NAME, "storage": storage}
            study = optuna.create_study(**options, load_if_exists=True, direction="minimize")
            sampler = optuna.samplers.TPESampler(
                seed=seed + len(study.trials), n_startup_trials=STARTUP, constant_liar=True
            )
        self.study = optuna.load_study(**options, sampler=sampler)
        self._drop_dead()

    def _drop_dead(self) -> None:
        """Trials of processes of this machine that are gone have failed."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, process = str(trial.user_attrs.get(WORKER, "")).rpartition(":")
            if host == socket.gethostname() and not _runs(int(process)):
                self.study.tell(trial.number, state=TrialState.FAIL)

    def points(self) -> list[Point]:
        """Every network that was judged, of all processes, in the order of trials."""
        known = self.study.user_attrs
        return [Point.of(known[key]) for key in sorted(known) if key.startswith(POINT)]

    def add(self, point: Point) -> None:
        self.study.set_user_attr(f"{POINT}{point.trial:05d}", point.to_dict())

    @property
    def facts(self) -> dict[str, Any]:
        return self.study.user_attrs

    def learn(self, name: str, value: Any) -> None:
        self.study.set_user_attr(name, value)

    def ask(
        self, space: Mapping[str, Any], known: Mapping[str, Any], why: str
    ) -> tuple[optuna.Trial, dict[str, Any]]:
        """The next trial, and its knobs. space: by knob, the choices, or (low, high). known: knobs
        that are decided. why: they are.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if known:
                self.study.enqueue_trial(dict(known))
            trial = self.study.ask()
            trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
            trial.set_user_attr("why", why)
            knobs = {
                name: trial.suggest_float(name, *choices, log=True)
                if isinstance(choices, tuple)
                else trial.suggest_categorical(name, choices)
                for name, choices in space.items()
            }
        return trial, knobs

    def ended(self, trial: optuna.Trial, value: float) -> None:
        """The end of a trial, with its score."""
        self.study.tell(trial, value)

    def running(self) -> list[dict[str, Any]]:
        """The knobs of the trials that are under way, of all processes."""
        from optuna.trial import TrialState

        found = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [dict(t.params) for t in found if "share" in t.params]

    def failed(self, trial: optuna.Trial) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.FAIL)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
