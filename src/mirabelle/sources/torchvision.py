"""torchvision, where its compiled operators do not fit the installed torch.

pip brings a torchvision for CUDA beside a torch for the CPU, and its import ends at the first
operator that it cannot load. Classifiers and segmentation networks need none of these: they are
declared, without a kernel, so that the rest of the package can be used.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from mirabelle.base.errors import MissingRuntimeError
from mirabelle.runtimes.artifact import require

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt "
    "pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int "
    "sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt "
    "pooled_width) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt "
    "pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, "
    "SymInt width) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt "
    "pooled_width, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float "
    "spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, SymInt "
    "batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt "
    "pooled_width) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float "
    "spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt "
    "channels, SymInt height, SymInt width) -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt "
    "stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt "
    "dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor "
    "mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt "
    "dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@functools.cache
def declared() -> torch.library.Library:
    """The operators, declared; the library is kept, as one that is collected takes them along."""
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def torchvision() -> ModuleType:
    """The package; `MissingRuntimeError` where it is not installed or does not fit torch."""
    try:
        return require("torchvision", "torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    declared()
    try:
        return require("torchvision", "torchvision")
    except Exception as error:
        raise MissingRuntimeError(
            f"torchvision does not fit torch {torch.__version__} ({error}); install it from where "
            "torch came, such as pip install torchvision --index-url "
            "https://download.pytorch.org/whl/cpu"
        ) from error
