"""The folder of a run: each step's output under the hash of everything that it depends on, there
whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirabelle.base.errors import InputError
from mirabelle.base.files import (
    MARK,
    content_hash,
    folder_at,
    is_temporary,
    read_json,
    sha256,
    temporary_folder,
    write_json,
    write_text,
)
from mirabelle.runtimes import RUNTIMES

DONE = "step.json"
MARKER = ".mirabelle-run"  # a folder with this file is a run's own
MARKED = "A run of Mirabelle writes and removes files in this folder.\n"
OLD = "old"  # a step that is being replaced
OWN = ("steps", "work", "model", *RUNTIMES)  # the folders in it


class Workspace:
    """`folder/steps/<n>-<name>-<key>/` for finished steps, `folder/work/...` for the one
    under way.
    """

    def __init__(self, folder: Path, resume: bool):
        """Makes the folder a run's own. `InputError` where it holds files that no run made: they
        could be overwritten.
        """
        self.folder, self.resume = folder, resume
        folder_at(folder)
        for name in OWN:
            if (folder / name).is_symlink():
                raise InputError(
                    f"{folder / name} is a link; a run writes into folders of its own only: remove "
                    "the link, or choose another folder"
                )
        if (folder / MARKER).is_symlink() or not (folder / MARKER).is_file():
            others = sorted(p.name for p in folder.iterdir() if not is_temporary(p, MARKER))
            if others:
                raise InputError(
                    f"{folder} holds {others[0]!r} and is no run's folder, in which files are "
                    "overwritten and removed; choose a new or an empty one"
                )
            write_text(folder / MARKER, MARKED)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One run at a time in a folder; the lock dies with its process."""
        path = self.folder / ".lock"
        try:  # never through a link, and never emptied: it may be another's file
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(
                f"{path} cannot be opened ({error.strerror}); remove it, or choose another folder"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise InputError(
                f"another run is at work in {self.folder}; wait for it, or choose another folder"
            ) from None
        try:
            yield
        finally:
            os.close(handle)

    def path(self, number: int, name: str, key: str) -> Path:
        return self.folder / "steps" / f"{number:02d}-{name}-{key[:12]}"

    def work(self, number: int, name: str, key: str) -> Path:
        """Where the step under way may keep what helps it to go on (checkpoints)."""
        return self.folder / "work" / f"{number:02d}-{name}-{key[:12]}"

    def finished(self, number: int, name: str, key: str) -> dict[str, Any] | None:
        """What a finished step recorded, or None where it has to run: not there, of another key,
        damaged, or the run does not resume.
        """
        folder = self.path(number, name, key)
        if not self.resume or not (folder / DONE).is_file():
            return None
        try:
            record = read_json(folder / DONE)
            whole = record.pop("sha256") == content_hash(record)
            sound = (
                whole
                and record["key"] == key
                and all(
                    (folder / f).is_file() and sha256(folder / f) == h
                    for f, h in record["files"].items()
                )
            )
        except (InputError, KeyError, TypeError, AttributeError):
            return None
        return record if sound else None

    def begin(self, number: int, name: str, key: str) -> Path:
        """An empty folder to write the step's output into."""
        if not self.resume:
            shutil.rmtree(self.work(number, name, key), ignore_errors=True)
        (self.folder / "steps").mkdir(exist_ok=True)
        return temporary_folder(self.folder / "steps", f"{number:02d}-{name}")

    def finish(
        self,
        number: int,
        name: str,
        key: str,
        written: Path,
        facts: dict[str, Any],
        timings: dict[str, Any],
    ) -> dict[str, Any]:
        """Moves what was written to its place, with its record. Facts are the same for every run of
        this key; timings are not.
        """
        files = {
            str(p.relative_to(written)): sha256(p)
            for p in sorted(written.rglob("*"))
            if p.is_file()
        }
        record = {"key": key, "name": name, "files": files, "facts": facts, "timings": timings}
        write_json(written / DONE, {**record, "sha256": content_hash(record)})
        record = {
            k: v for k, v in read_json(written / DONE).items() if k != "sha256"
        }  # as a resumed run will read it
        target = self.path(number, name, key)
        if target.exists():
            # A folder cannot take a filled one's place. Killed between the two, the step is done
            # again.
            aside = temporary_folder(self.folder / "steps", OLD)
            os.replace(target, aside / target.name)
            os.replace(written, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(written, target)
        shutil.rmtree(self.work(number, name, key), ignore_errors=True)
        return record

    def sweep(self) -> None:
        """Removes what killed runs left half done: never a finished step, and nothing that is not
        called exactly as a run calls what it makes on the way.
        """
        for leftover in (self.folder / "steps").glob(".*"):
            if self._is_step(leftover) and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
        for folder in (self.folder, *(self.folder / name for name in OWN[2:])):
            for leftover in folder.glob(".*"):
                target = leftover.name.rpartition(MARK)[0].removeprefix(".")
                if target and is_temporary(leftover, target) and leftover.is_file():
                    leftover.unlink(missing_ok=True)

    @staticmethod
    def _is_step(path: Path) -> bool:
        begun = re.match(r"\.(\d\d-[a-z]+)\.", path.name)
        return is_temporary(path, OLD) or (begun is not None and is_temporary(path, begun[1]))


def chain(previous: str, **depends: Any) -> str:
    """The key of a step: the previous one's and everything of its own that decides its result."""
    return content_hash({"previous": previous, **depends})
