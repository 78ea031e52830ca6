"""Ctrl-C and SIGTERM end what is under way, wherever they arrive, and let it clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# What Python does by itself with these is replaced; a handler of the user's own is not.
DEFAULTS: dict[str, Any] = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}
_pending: Callable[[], BaseException] | None = None


def _arrived(number: int, frame: FrameType | None) -> None:
    global _pending
    interrupt = number == signal.SIGINT
    _pending = KeyboardInterrupt if interrupt else lambda: SystemExit(128 + number)
    raise _pending()


def check() -> None:
    """Raises again what a signal raised before, where that was lost: Python prints and forgets
    exceptions in callbacks of weak references, which torch has many of. Called between steps.
    """
    if _pending is not None:
        raise _pending()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C raises `KeyboardInterrupt` and SIGTERM `SystemExit(143)`, so that temporary
    folders are removed. Both come out of the block whatever was made of them inside; a second
    signal raises at once as the first did.

    Does nothing outside of the main thread and where the signals have other handlers.
    """
    global _pending
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {
        number: before
        for name, default in DEFAULTS.items()
        if (number := getattr(signal, name, None)) is not None
        and (before := signal.getsignal(number)) is default
    }
    for number in ours:
        signal.signal(number, _arrived)
    try:
        yield
        check()
    except Exception as error:  # perhaps what a library made of the interruption
        if ours and _pending is not None:
            raise _pending() from error
        raise
    finally:
        for number, before in ours.items():
            signal.signal(number, before)
        if ours:
            _pending = None
