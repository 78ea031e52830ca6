"""What Mirabelle raises. Every message names the value, the place and the remedy."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from types import FrameType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# Decorators of these stand between a caller and the package.
BETWEEN = ("contextlib.py", os.path.join("torch", "utils", "_contextlib.py"))


class MirabelleError(Exception):
    """The base of every error that is the caller's to repair; the command line prints it without a
    traceback.
    """


class InputError(MirabelleError, ValueError):
    """An argument, a batch or a file that cannot be worked with."""


class OptionError(InputError, TypeError):
    """A name that is no option of the verb."""


class CheckpointError(InputError):
    """A checkpoint that training cannot go on from: damaged, or another run's."""


class RecipeError(InputError):
    """A recipe that is wrong as written; found before any work starts."""


class CaptureError(MirabelleError):
    """`torch.export` refused the network, or the captured graph is not one that can be
    worked on.
    """


class SurgeryError(MirabelleError):
    """The network could not be cut; the network that was given is untouched."""


class MissingRuntimeError(MirabelleError, ImportError):
    """An optional package is needed and not installed."""


class LimitError(MirabelleError):
    """A run finished its steps and missed a limit of its recipe; the artifacts are kept."""


class CertificateError(MirabelleError):
    """A run's folder that is not, byte for byte, what its certificate says."""


# What people write for what is called otherwise here.
MEANT = {
    "ort": "onnxruntime",
    "onnx": "onnxruntime",
    "tflite": "litert",
    "pte": "executorch",
    "ov": "openvino",
    "trt": "tensorrt",
}


class MirabelleWarning(UserWarning):
    """What came out otherwise than the caller would think; the result is sound."""


def first_line(error: object) -> str:
    """What an error says, without the lines that explain it; empty where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def warn(text: str) -> None:
    """Warns at the line outside of this package that led here."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and _is_inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, MirabelleWarning, stacklevel=level)


def _is_inside(file: str) -> bool:
    return file.startswith(PACKAGE) or file.endswith(BETWEEN)


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """A clause that names the nearest known names, or all of them where none is near: `; did you
    mean 'taylor'?`.
    """
    names = sorted(str(k) for k in known)
    if MEANT.get(name.lower()) in names:
        return f"; did you mean {MEANT[name.lower()]!r}?"
    near = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "; known: " + ", ".join(names) if names else ""


def choose(name: object, table: Mapping, what: str):
    """`table[name]`, or an `InputError` that names the near misses. `what` is the noun of the
    message.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise InputError(f"unknown {what} {name!r}{did_you_mean(str(name), table)}")
