"""Targets: the integer grids that a runtime's kernels run fast and right."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from mirabelle.base.errors import choose
from mirabelle.runtimes.clipping import kernels_with_pairs


@dataclass(frozen=True)
class Target:
    """The grids and the placement that one runtime's kernels want on one kind of machine.

    activations: the dtype that the exported file holds, `uint8` or `int8`. unsigned: tensors that
    are never negative use all the levels for the positive side (0..255), else every tensor is
    symmetric. zero_points: values around any other number take no more time than those around zero.
    weight_bits: at most. pairs: kernels may add pairs of products in 16 bits, so that filters whose
    sums can reach further get a smaller range.
    rounded: what a convolution gives is rounded wherever it goes, as there is no kernel that leaves
    it in float; else only where integers are read.
    sums: a convolution adds its result to another tensor before it rounds, so that of the operands
    of an addition only the other one is rounded.
    averages: what an average over space reads is rounded. products: queries and keys of attention
    are multiplied as integers.
    biases: stored as integers in units of the accumulators, else as floats.
    """

    name: str
    activations: str = "uint8"
    unsigned: bool = True
    zero_points: bool = True
    weight_bits: int = 8
    pairs: bool = False
    rounded: bool = True
    sums: bool = False
    averages: bool = True
    products: bool = False
    biases: bool = True


TARGETS: dict[str, Target] = {
    "x86": Target("x86", pairs=True),
    "x86-vnni": Target("x86-vnni"),
    "arm": Target("arm", activations="int8"),
    "openvino": Target(
        "openvino", zero_points=False, pairs=True, rounded=False, sums=True, products=True
    ),
    "tensorrt": Target(
        "tensorrt",
        activations="int8",
        unsigned=False,
        zero_points=False,
        rounded=False,
        sums=True,
        averages=False,
        biases=False,
    ),
    "symmetric": Target("symmetric", activations="int8", unsigned=False, zero_points=False),
}

# Where nobody names a target: phones have Arm's kernels, whatever this machine is.
OF_RUNTIME = {
    "openvino": "openvino",
    "onnxruntime-mobile": "arm",
    "litert": "arm",
    "executorch": "arm",
    "ncnn": "symmetric",
    "tensorrt": "tensorrt",
    "onnxruntime-tensorrt": "tensorrt",
}


def target_of(runtime: str) -> str:
    """The target that suits a runtime; of those that run here, `auto` becomes this machine's."""
    return resolve_target(OF_RUNTIME.get(runtime, "auto")).name


def resolve_target(name: str = "auto") -> Target:
    """A target by name; `auto` is this machine's, of whose kernels ONNX Runtime's are asked whether
    they clip sums of pairs. Files for `x86` suit every x86 machine.
    """
    if name == "auto":
        name = (
            "arm"
            if platform.machine().lower() in ("arm64", "aarch64")
            else "x86-vnni"
            if kernels_with_pairs("onnxruntime") is None
            else "x86"
        )
    return choose(name, TARGETS, "target")
