"""Intermediate outputs compared: layers named by module path, projections that are trained along
and thrown away.

A feature loss is a function (student layer, teacher layer) -> scalar, the mean over the batch;
`distill(losses={"attention": 1.0}, features=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.distillation.losses import similarity


def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of two layers of equal channels. FitNets, Romero et al. 2015, eq.
    3; its regressor is the projection of `Hints`.
    """
    return F.mse_loss(*_same_positions(student.float(), teacher.float()))


def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Where the layers look: squared difference of the maps of mean squared activation, each
    brought to length 1 over the positions; 0 to 2.

    student, teacher: (N, C, H, W) or (N, T, C); the channels may differ. Attention transfer,
    Zagoruyko & Komodakis 2017, eq. 2, with p = 2.
    """
    if student.ndim < 3:
        raise InputError(
            "attention compares positions and needs layers (N, C, H, W) or (N, T, C), got "
            f"{tuple(student.shape)}; use features"
        )
    s, t = _same_positions(student.float(), teacher.float())
    maps = [F.normalize(a.square().mean(1 if a.ndim == 4 else -1).flatten(1)) for a in (s, t)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def similar(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`losses.similarity` on layers: which samples of the batch are alike. Channels and positions
    may differ. Tung & Mori 2019, eqs. 1 to 4.
    """
    return similarity(student, teacher)


FeatureLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FEATURE_LOSSES: dict[str, FeatureLoss] = {
    "features": hint,
    "attention": attention,
    "feature_similarity": similar,
}
PROJECTED_FEATURES = {"features"}  # compare channel by channel, so they need equally many
FEATURES_ACROSS_SAMPLES = {"feature_similarity"}


def _same_positions(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of different sizes are averaged to the smaller one."""
    if s.ndim == 4 and t.ndim == 4 and s.shape[2:] != t.shape[2:]:
        size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
        return F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
    return s, t


class Taps:
    """Keeps what the named modules of a network gave in its last forward pass; `close()` removes
    the hooks.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], whose: str):
        known = dict(model.named_modules())
        for name in names:
            if name not in known or not name:
                raise InputError(
                    f"features names {name!r}, which is no module of the "
                    f"{whose}{did_you_mean(name, [k for k in known if k])}"
                )
        self.names, self.whose = list(dict.fromkeys(names)), whose
        self.seen: dict[str, torch.Tensor] = {}
        self._hooks = [known[name].register_forward_hook(self._keep(name)) for name in self.names]

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not isinstance(output, torch.Tensor):
                raise InputError(
                    f"features: module {name!r} gives a {type(output).__name__}, not a tensor; "
                    "name a module inside it"
                )
            self.seen[name] = output

        return hook

    def check(self) -> None:
        """`InputError` for a module that is there and that the network did not run."""
        for name in self.names:
            if name not in self.seen:
                raise InputError(
                    f"features names {name!r}, which the {self.whose} has and does not run; "
                    "there is no output of it to compare"
                )

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


class Hints(nn.Module):
    """Feature losses over pairs of layers, summed over the pairs.

    pairs: student layer -> teacher layer. losses: names of `FEATURE_LOSSES`. student, teacher: the
    layers on the first batch. For `features`, a projection (1x1 convolution or linear) stands where
    the channels differ, and the difference is divided by the mean square of the teacher's layer on
    the first batch, so that a weight means the same for every layer. Raises `InputError` with both
    shapes where layers cannot be compared.
    """

    def __init__(
        self,
        pairs: Mapping[str, str],
        student: dict[str, torch.Tensor],
        teacher: dict[str, torch.Tensor],
        losses: Sequence[str] = ("features",),
    ):
        super().__init__()
        self.pairs = dict(pairs)
        self.losses = tuple(losses)
        self.projections = nn.ModuleList()
        scales = []
        for mine, theirs in pairs.items():
            s, t = student[mine], teacher[theirs]
            projected = bool(PROJECTED_FEATURES & set(losses))
            comparable = (
                s.ndim == t.ndim and s.ndim in (2, 3, 4)
                if set(losses) - {"feature_similarity"}
                else min(s.ndim, t.ndim) >= 2
            )
            if not comparable or (
                s.ndim == 3 and s.shape[1] != t.shape[1] and set(losses) - {"feature_similarity"}
            ):
                raise InputError(
                    f"features: student {mine!r} gives {tuple(s.shape)} and teacher {theirs!r} "
                    f"{tuple(t.shape)}; both must be (N, C, H, W), (N, T, C) or (N, C)"
                )
            a, b = (s.shape[1], t.shape[1]) if s.ndim == 4 else (s.shape[-1], t.shape[-1])
            plain = a == b or not projected
            self.projections.append(
                nn.Identity()
                if plain
                else nn.Conv2d(a, b, 1, bias=False)
                if s.ndim == 4
                else nn.Linear(a, b, bias=False)
            )
            scales.append(t.float().square().mean().clamp_min(1e-12))
        self.register_buffer("scales", torch.stack(scales).detach().clone())

    def forward(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Each loss by name, summed over the pairs."""
        found: dict[str, torch.Tensor] = {}
        for i, (mine, theirs) in enumerate(self.pairs.items()):
            s, t = student[mine].float(), teacher[theirs].float()
            for name in self.losses:
                value = FEATURE_LOSSES[name](
                    self.projections[i](s) if name in PROJECTED_FEATURES else s, t
                )
                if name in PROJECTED_FEATURES:
                    value = value / self.scales[i]  # type: ignore[index]
                found[name] = found[name] + value if name in found else value
        return found
