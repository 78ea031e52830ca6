"""Room for signal handlers, which a runtime may take away."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

ROOM = 256 * 1024
SS_DISABLE = 2


class _Stack(ctypes.Structure):
    """stack_t of Linux's <signal.h>."""

    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


# The stacks given out, by thread: a signal may come at any time, so they are never freed.
_given: dict[int, mmap.mmap] = {}


def alternate_stack() -> int:
    """Bytes of this thread's alternate signal stack; 0 where there is none. Linux only."""
    now = _Stack(None, SS_DISABLE, 0)
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return 0 if now.flags & SS_DISABLE else now.size


def enough_signal_stack() -> None:
    """Gives this thread an alternate signal stack of 256 KiB in the place of a smaller one; does
    nothing where there is none, or off Linux.

    OpenVINO's CPU plugin sets one of about 11 KiB when it compiles (for AMX, also where the CPU has
    none), and CPython runs its handlers on it (SA_ONSTACK, since 3.11). With AVX-512 state two
    frames fill it: the next SIGCHLD of a DataLoader's worker, or a Ctrl-C, ended the process with a
    segmentation fault.
    """
    if not sys.platform.startswith("linux") or not 0 < alternate_stack() < ROOM:
        return
    memory = mmap.mmap(-1, ROOM)
    stack = _Stack(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 0, ROOM)
    if ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0:
        _given[threading.get_native_id()] = memory
