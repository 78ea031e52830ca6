"""Tensors of other sizes in a module, and the attributes of modules that repeat those sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import every_tensor
from mirabelle.channels.recurrent import GATES


def replace_tensors(model: nn.Module, new: Mapping[str, torch.Tensor]) -> None:
    """Puts tensors of other sizes in the place of parameters and buffers, wherever they are shared,
    and repairs the modules' size attributes.
    """
    by_id: dict[int, torch.Tensor] = {}
    tensors = every_tensor(model)
    for name, tensor in new.items():
        old = tensors[name]
        by_id[id(old)] = (
            nn.Parameter(tensor, requires_grad=old.requires_grad)
            if isinstance(old, nn.Parameter)
            else tensor
        )
    for module in model.modules():
        old_shapes = {k: tuple(p.shape) for k, p in module._parameters.items() if p is not None}
        changed = False
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for key, value in table.items():
                if value is not None and id(value) in by_id:
                    table[key] = by_id[id(value)]
                    changed = True
        if changed:
            mend_sizes(module, old_shapes)


def mend_sizes(module: nn.Module, old_shapes: dict[str, tuple[int, ...]]) -> None:
    """Attributes that repeat a size of the weights: they must say what the weights say."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, torch.Tensor):
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise
            module.groups = weight.shape[0] // (old_shapes["weight"][0] // module.groups)
        first, second = weight.shape[0], weight.shape[1] * module.groups
        module.in_channels, module.out_channels = (
            (first, second) if module.transposed else (second, first)
        )
    elif isinstance(module, nn.Linear) and isinstance(weight, torch.Tensor):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vectors = [t for t in (module.weight, module.running_mean) if t is not None]
        if vectors:
            module.num_features = len(vectors[0])
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and isinstance(weight, torch.Tensor):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and isinstance(weight, torch.Tensor):
        if module.num_groups == module.num_channels:
            module.num_groups = len(weight)
        module.num_channels = len(weight)
    elif isinstance(module, nn.Embedding) and isinstance(weight, torch.Tensor):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU) and isinstance(weight, torch.Tensor):
        module.num_parameters = len(weight)
    elif isinstance(module, nn.RNNBase):
        first: Any = module.weight_ih_l0
        recurrent: Any = module.weight_hh_l0
        module.hidden_size, module.input_size = (
            len(first) // GATES[module.mode.lower()],
            first.shape[1],
        )
        module.proj_size = recurrent.shape[1] if module.proj_size else 0
        module._init_flat_weights()  # it holds its weights a second time
    elif isinstance(module, nn.RNNCellBase):
        module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]
