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
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

# ONNX Runtime from 1.29 on writes an identifier of the machine to disk, and seconds after the first
# session tells Microsoft of the network; it reads this once, when it starts, and its function for
# it comes too late. Who wants it sets 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


# Copying a graph that torch.export made copies its description of the outputs.
LEAF_SPEC = r".*isinstance\(treespec, LeafSpec\)"


class _OthersOnly:
    """A stream that drops what the thread that made it writes."""

    def __init__(self, stream: Any):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        mine = threading.get_ident() == self._thread
        return len(text) if mine else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def muffled() -> Iterator[None]:
    """Inside, nothing is logged, warned about or printed to standard error by this thread: what
    fails is raised. None of it is about the user's network.

    torch logs an error with its traceback, and prints the graph so far, before it raises.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), redirect_stderr(_OthersOnly(sys.stderr or StringIO())):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def copying() -> Iterator[None]:
    """Inside, torch does not warn that it copies its own outdated descriptions of outputs; what
    else warns is heard.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", LEAF_SPEC, FutureWarning)
        yield


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
