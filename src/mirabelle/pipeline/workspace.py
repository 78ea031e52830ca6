"""The folder of a run: each step's output under the hash of everything that it depends on, there
whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirabelle.base.errors import InputError
from mirabelle.base.files import content_hash, read_json, sha256, write_json

DONE = "step.json"


class Workspace:
    """`folder/steps/<n>-<name>-<key>/` for finished steps, `folder/work/...` for the one
    under way.
    """

    def __init__(self, folder: Path, resume: bool):
        self.folder, self.resume = folder, resume
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One run at a time in a folder; the lock dies with its process."""
        with open(self.folder / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"another run is at work in {self.folder}; wait for it, or choose another "
                    "folder"
                ) from None
            yield

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
        return Path(tempfile.mkdtemp(prefix=f".{number:02d}-{name}-", dir=self.folder / "steps"))

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
            aside = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder / "steps"))
            os.replace(target, aside / target.name)
            os.replace(written, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(written, target)
        shutil.rmtree(self.work(number, name, key), ignore_errors=True)
        return record

    def sweep(self) -> None:
        """Removes what killed runs left half done (never a finished step)."""
        for leftover in (self.folder / "steps").glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in (*self.folder.glob(".report.*"), *self.folder.glob("*/.model.*")):
            leftover.unlink(missing_ok=True)


def chain(previous: str, **depends: Any) -> str:
    """The key of a step: the previous one's and everything of its own that decides its result."""
    return content_hash({"previous": previous, **depends})
