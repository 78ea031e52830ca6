"""What native code prints. Libraries in C++ write past Python's `sys.stdout`, into the middle of what a user's program says."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    try:
        ctypes.CDLL(None).fflush(None)  # C's own buffers: what is left in them would come out later
    except (OSError, AttributeError, TypeError):  # no such handle on Windows
        pass


@contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """Keeps what the process writes to its standard output and standard error from them; the function that is yielded returns it so far.

    Both streams are put back at the end. Meanwhile other threads' output is kept too, so only short pieces of work belong inside.
    """
    with tempfile.TemporaryFile() as kept:

        def said() -> str:
            _flush()
            kept.seek(0)
            text = kept.read().decode(errors="replace")
            kept.seek(0, os.SEEK_END)
            return text

        _flush()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(kept.fileno(), number)
            yield said
        finally:
            _flush()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
