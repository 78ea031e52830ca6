"""Whether pictures reach a network as it was trained: wrong preprocessing is the commonest cause of
a bad int8 file, and nothing fails by it.

The float network is asked about the same pictures in neighboring ways: the other order of colors,
other ranges, with and without mean and standard deviation. About pictures as it knows them a
network is right most often, and gives a picture and its mirror image the same class. (That it is
sure says nothing: values that are too large make any network sure.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.checks import shell
from mirabelle.base.data import device_of
from mirabelle.sources.data import Data
from mirabelle.sources.preprocessing import Preprocessing
from mirabelle.sources.samples import Samples, UnreadableError

PICTURES = 48  # that are looked at
MARGIN = 0.15  # of accuracy, by which another way has to be better
STEADIER = 0.25  # of kappa, without labels
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Answer:
    """What a network says of pictures that were brought to it in one way.

    right: the share whose class is the label, None without labels. steady: Cohen's kappa between
    the classes of pictures and those of their mirror images: 1 where they are the same, 0 where
    they are so by chance alone, as with one class for all. kinds: how many classes it answers with.
    """

    right: float | None
    steady: float
    kinds: int

    def beats(self, other: Answer) -> bool:
        if self.right is not None and other.right is not None:
            return self.right > other.right + MARGIN
        return self.steady > other.steady + STEADIER


@dataclass(frozen=True)
class Checked:
    """warnings: one line for each thing that is likely wrong, with its remedy. pictures: how many
    were looked at, 0 where the network gives no classes or there are no pictures. right, steady:
    see `Answer`; of the pictures as they are brought to the network.
    """

    warnings: list[str] = field(default_factory=list)
    pictures: int = 0
    right: float | None = None
    steady: float | None = None


def neighbors(how: Preprocessing) -> dict[str, Preprocessing]:
    """Other ways that people take, by what one would have to say to get them."""
    if how.dtype == "uint8" or how.color == "gray":
        return {}
    mean, std = IMAGENET
    half = (0.5, 0.5, 0.5)
    other = "rgb" if how.color == "bgr" else "bgr"
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    found = {
        f"--color {other}": replace(how, color=other),
        "--mean 0 --std 1": replace(how, **plain, scale=1.0),
        "--mean 0 --std 1 --scale 255": replace(how, **plain, scale=255.0),
        "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225": replace(
            how, mean=mean, std=std, scale=1.0
        ),
        "--mean 0.5 --std 0.5": replace(how, mean=half, std=half, scale=1.0),
    }
    values = (how.mean, how.std, how.scale, how.color)
    return {k: v for k, v in found.items() if (v.mean, v.std, v.scale, v.color) != values}


def check(model: nn.Module, data: Data) -> Checked:
    """Asks the network about test pictures in neighboring ways.

    model: the float network. data: whose `how` says how pictures are brought to it.
    Nothing was looked at where the network gives no classes, or there are no pictures.
    """
    found = None if data.how is None or data.table is None else _pictures(data)
    if found is None or data.how is None:
        return Checked()
    pixels, labels = found
    own = _answer(model, data.how, pixels, labels)
    if own is None:
        return Checked()
    others = {
        k: a for k, n in neighbors(data.how).items() if (a := _answer(model, n, pixels, labels))
    }
    warnings = []
    better = {k: a for k, a in others.items() if a.beats(own)}
    if better:
        name = max(better, key=lambda k: (better[k].right or 0.0, better[k].steady))
        warnings.append(_said(name, better[name], own, len(pixels)))
    elif own.kinds == 1 and len(pixels) >= 8 and (labels is None or len(set(labels)) > 1):
        warnings.append(
            f"the network gives all {len(pixels)} pictures the same class; look at size, mean and "
            "std, at the order of colors, and at its weights"
        )
    elif _as_by_chance(own, labels):
        warnings.append(
            f"the network is right about {100 * (own.right or 0):.0f} % of the pictures, and sees "
            f"{own.kinds} kinds of them: their labels may be in another order than its classes; "
            "folders are numbered by name, a .csv with a column `label` says the numbers"
        )
    return Checked(warnings, len(pixels), own.right, own.steady)


def _as_by_chance(own: Answer, labels: list[int] | None) -> bool:
    """Whether it tells the pictures apart, and is right no more often than by chance."""
    kinds = len(set(labels or ()))
    if own.right is None or kinds < 2:
        return False
    return own.steady > 0.5 and own.right <= 1 / kinds + 0.05


def _said(name: str, better: Answer, own: Answer, count: int) -> str:
    if better.right is not None and own.right is not None:
        how = (
            f"{100 * better.right:.0f} % of {count} pictures are right with {name}, "
            f"{100 * own.right:.0f} % as they are now"
        )
    else:
        how = (
            f"with {name} the network gives more of {count} pictures the class of their mirror "
            f"image (kappa {better.steady:.2f}, now {own.steady:.2f})"
        )
    return f"the preprocessing may be wrong: {how}; try {name}"


def _pictures(data: Data) -> tuple[list[np.ndarray], list[int] | None] | None:
    """Bytes of some pictures, and their labels."""
    test = data.loaders.test
    how = data.how
    if not isinstance(test, Samples) or how is None:
        return None
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for index in test.indices[:PICTURES]:
        try:
            value, label = test.table.read(int(index))
        except UnreadableError:
            continue
        if not isinstance(value, np.ndarray) or value.shape != how.shape:
            return None
        pixels.append(how.pixels_of(value))
        labels.append(label)
    plain = test.labeled and all(isinstance(v, int) for v in labels)
    return (pixels, labels if plain else None) if pixels else None


def _answer(
    model: nn.Module, how: Preprocessing, pixels: list[np.ndarray], labels: list[int] | None
) -> Answer | None:
    """None where the network gives no classes, or does not run."""
    turned = [p[:, :, ::-1] if how.color == "bgr" else p for p in pixels]
    scores = _scores(model, how, turned)
    mirrored = _scores(model, how, [p[:, ::-1] for p in turned])
    if scores is None or mirrored is None:
        return None
    classes, others = scores.argmax(1), mirrored.argmax(1)
    right = None
    if labels is not None:
        right = float((classes == torch.tensor(labels)).float().mean())
    return Answer(right, kappa(classes, others), len(classes.unique()))


def kappa(first: torch.Tensor, second: torch.Tensor) -> float:
    """Cohen 1960: how much more often two lists of classes agree than by chance; 0 where chance
    alone makes them equal.
    """
    same = float((first == second).float().mean())
    count = int(max(first.max(), second.max())) + 1
    chance = float((first.bincount(minlength=count) * second.bincount(minlength=count)).sum())
    chance /= len(first) ** 2
    return 0.0 if chance >= 1 else (same - chance) / (1 - chance)


def _scores(model: nn.Module, how: Preprocessing, pixels: list[np.ndarray]) -> torch.Tensor | None:
    """(N, classes); None where the network gives none, or does not run."""
    device, own = device_of(model), shell(model).eval()
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 16):
            part = np.stack([how.normalized(p) for p in pixels[start : start + 16]])
            try:
                found = _first(own(torch.from_numpy(part).to(device)))
            except Exception:  # it takes other batches, or fails on values of another range
                return None
            if found is None or found.ndim != 2 or found.shape[1] < 2:
                return None
            outputs.append(found.float().cpu())
    return torch.cat(outputs)


def _first(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        return _first(next(iter(output.values())))
    return _first(output[0]) if isinstance(output, (tuple, list)) and output else None
