"""Intermediate outputs compared: hints from layers named by module path, with projections that are trained along and thrown away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.errors import InputError, did_you_mean


class Taps:
    """Keeps what the named modules of a network gave in its last forward pass; `close()` removes the hooks."""

    def __init__(self, model: nn.Module, names: list[str], whose: str):
        known = dict(model.named_modules())
        for name in names:
            if name not in known or not name:
                raise InputError(f"features names {name!r}, which is no module of the {whose}{did_you_mean(name, [k for k in known if k])}")
        self.seen: dict[str, torch.Tensor] = {}
        self._hooks = [known[name].register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not isinstance(output, torch.Tensor):
                raise InputError(f"features: module {name!r} gives a {type(output).__name__}, not a tensor; name a module inside it")
            self.seen[name] = output

        return hook

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


class Hints(nn.Module):
    """The mean squared difference between projected student layers and teacher layers, each divided by the teacher's mean square.

    pairs: student layer -> teacher layer. A projection (1x1 convolution or linear) stands where the channels differ; other spatial sizes are
    averaged to the smaller one. FitNets, Romero et al. 2015, eq. 3.
    """

    def __init__(self, pairs: Mapping[str, str], student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]):
        super().__init__()
        self.pairs = dict(pairs)
        self.projections = nn.ModuleList()
        for mine, theirs in pairs.items():
            s, t = student[mine], teacher[theirs]
            if s.ndim != t.ndim or s.ndim not in (2, 3, 4):
                raise InputError(
                    f"features: student {mine!r} gives {tuple(s.shape)} and teacher {theirs!r} {tuple(t.shape)}; both must be (N, C, H, W), (N, T, C) or (N, C)"
                )
            a, b = (s.shape[1], t.shape[1]) if s.ndim == 4 else (s.shape[-1], t.shape[-1])
            self.projections.append(nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False) if s.ndim == 4 else nn.Linear(a, b, bias=False))

    def forward(self, student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(())
        for projection, (mine, theirs) in zip(self.projections, self.pairs.items(), strict=True):
            s, t = projection(student[mine].float()), teacher[theirs].float()
            if s.ndim == 4 and s.shape[2:] != t.shape[2:]:
                size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
                s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
            total = total.to(s.device) + F.mse_loss(s, t) / t.square().mean().clamp_min(1e-12)
        return total
