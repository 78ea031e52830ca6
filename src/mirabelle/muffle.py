"""Others' libraries, kept quiet while they work for us."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO


@contextmanager
def muffled() -> Iterator[None]:
    """Inside, nothing is logged or warned about below an error; none of it is about the user's network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def silenced() -> Iterator[Callable[[], str]]:
    """`muffled`, and what is written to the standard streams, by native code too, is kept instead; the yielded function reads it."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as file, muffled(), redirect_stdout(StringIO()):
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

            def said() -> str:
                file.seek(0)
                return file.read().decode(errors="replace")

            yield said
        finally:
            for number, saved in enumerate(kept, 1):
                os.dup2(saved, number)
                os.close(saved)
