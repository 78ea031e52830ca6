"""Time that processes share, and locks that die with them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirabelle.base.data import cache_folder
from mirabelle.base.errors import InputError
from mirabelle.base.files import read_json, write_json

LONGEST = 30.0  # seconds that a process which was killed may leave uncounted
POLL = 0.5  # seconds


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened ({error.strerror}); remove it, or choose another folder"
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock, and holds it."""
    handle = _open(path)
    try:
        while not _take(handle):
            time.sleep(POLL)
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def timing() -> Iterator[None]:
    """One process of this machine times at a time."""
    with locked(cache_folder() / "timing.lock"):
        yield


class Clock:
    """The seconds that a study has taken, whoever was at work on it: while several processes are,
    time counts once.

    One process keeps the time, in `folder/clock.json`; when it ends another takes over. What a
    search that was killed had taken counts when it goes on.
    """

    def __init__(self, folder: Path, seconds: float):
        self.path, self.seconds = folder / "clock.json", seconds
        self._handle = _open(folder / "clock.lock")
        self._keeps = False
        self._last = time.monotonic()
        self.spent = self._read()
        self.tick()

    def _read(self) -> float:
        try:
            return float(read_json(self.path)["seconds"])
        except (InputError, KeyError, TypeError, ValueError):
            return 0.0

    def tick(self) -> float:
        """The seconds that are left."""
        now = time.monotonic()
        if not self._keeps and _take(self._handle):
            self._keeps, self.spent, self._last = True, self._read(), now
        if self._keeps:
            self.spent += now - self._last
            self._last = now
            write_json(self.path, {"seconds": self.spent})
        else:
            self.spent = max(self.spent, self._read())
        return self.seconds - self.spent

    def close(self) -> None:
        if self._keeps:
            self.tick()
        os.close(self._handle)
