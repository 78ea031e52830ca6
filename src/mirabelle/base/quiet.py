"""What keeps quiet while others work for us: their libraries, what these would tell others, and
Python's own search for garbage.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

# ONNX Runtime from 1.29 on writes an identifier of the machine to disk, and seconds after the first
# session tells Microsoft of the network; it reads this once, when it starts, and its function for
# it comes too late. Who wants it sets 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextmanager
def muffled() -> Iterator[None]:
    """Inside, nothing is logged or warned about below an error; none of it is about the user's
    network.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python looks for no cycles of garbage: that costs a traced network, whose many
    objects stay, a tenth of its time, and a timed call its steadiness.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    """Keeps what the process writes to its standard output and standard error from them; the
    function that is yielded returns it so far.

    Both streams are put back at the end. Meanwhile other threads' output is kept too, so only short
    pieces of work belong inside.
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


@contextmanager
def silenced() -> Iterator[Callable[[], str]]:
    """`muffled`, and `captured`; the yielded function reads what was written."""
    with captured() as said, muffled(), redirect_stdout(StringIO()):
        yield said
