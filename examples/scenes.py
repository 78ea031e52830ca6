"""Scenes of discs, squares and triangles, drawn from a seed; a detector and a segmentation network
of them, and what they are measured by. `python -m examples.train_scenes` trains both.

Targets of the detector are a list with a dict for each image: `boxes` (M, 4) as left, top, right,
bottom in pixels, and `labels` (M,). Those of the segmentation are classes of pixels (N, H, W), 0
for the ground.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.base.files import read_tensors

HERE = Path(__file__).parent / "weights"
SHAPES = ("disc", "square", "triangle")
SIZE, STRIDE, ANCHOR = 64, 8, 16.0
SEEDS = {"train": 1, "calibration": 2, "validation": 3, "test": 4}
COUNTS = {"train": 2000, "calibration": 256, "validation": 256, "test": 512}
BATCH = 32


def draw(seed: int, count: int) -> tuple[torch.Tensor, list[dict], torch.Tensor]:
    """Images (count, 3, 64, 64), the boxes and labels of each, and the classes of all pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    images = np.empty((count, 3, SIZE, SIZE), np.float32)
    pixels = np.zeros((count, SIZE, SIZE), np.int64)
    objects = []
    for n in range(count):
        slope = rng.normal(0, 0.3, (3, 2))
        ground = rng.uniform(-0.6, 0.6, 3)[:, None, None] + (
            slope[:, :1, None] * (rows / SIZE - 0.5) + slope[:, 1:, None] * (columns / SIZE - 0.5)
        )
        image = ground + rng.normal(0, 0.25, (3, SIZE, SIZE))
        boxes, labels = [], []
        for _ in range(rng.integers(1, 5)):
            radius = rng.uniform(5, 11)
            x, y = rng.uniform(radius, SIZE - radius, 2)
            box = [x - radius, y - radius, x + radius, y + radius]
            if boxes and float(overlap(torch.tensor([box]), torch.tensor(boxes)).max()) > 0.1:
                continue
            kind = int(rng.integers(3))
            inside = filled(kind, (columns - x) / radius, (rows - y) / radius)
            color = rng.uniform(-1.5, 1.5, 3)
            color += np.sign(color - ground.mean((1, 2))) * 0.5
            image[:, inside] = color[:, None] + rng.normal(0, 0.25, (3, int(inside.sum())))
            pixels[n][inside] = kind + 1
            boxes.append(box)
            labels.append(kind)
        images[n] = image
        objects.append(
            {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
        )
    return torch.from_numpy(images), objects, torch.from_numpy(pixels)


def filled(kind: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points are inside of a shape that fills the square from -1 to 1."""
    if kind == 0:
        return x * x + y * y <= 1
    if kind == 1:
        return (abs(x) <= 1) & (abs(y) <= 1)
    return (abs(x) <= (y + 1) / 2) & (abs(y) <= 1)


def overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The intersection over union of boxes (A, 4) and (B, 4): (A, B)."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (one, other)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp(min=1e-9)


class Body(nn.Module):
    """Features at a half, a quarter and an eighth of the size."""

    def __init__(self, width: int):
        super().__init__()
        self.one = nn.Sequential(_conv(3, width, 2), _conv(width, width))
        self.two = nn.Sequential(_conv(width, 2 * width, 2), _conv(2 * width, 2 * width))
        self.three = nn.Sequential(_conv(2 * width, 4 * width, 2), _conv(4 * width, 4 * width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        one = self.one(x)
        two = self.two(one)
        return one, two, self.three(two)


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Detector(nn.Module):
    """One box for each cell of 8 x 8 pixels, as YOLO does: a dict of `boxes` (N, 64, 4) in pixels,
    `objectness` (N, 64) and `classes` (N, 64, 3), both as logits.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = Body(width)
        self.neck = nn.Sequential(_conv(6 * width, 4 * width, size=1), _conv(4 * width, 4 * width))
        self.head = nn.Conv2d(4 * width, 5 + len(SHAPES), 1)
        rows, columns = torch.meshgrid(*2 * [torch.arange(SIZE // STRIDE)], indexing="ij")
        cells = torch.stack([columns, rows], -1).reshape(1, -1, 2).float()
        self.register_buffer("cells", cells)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        _, two, three = self.body(x)
        seen = self.head(self.neck(torch.cat([F.max_pool2d(two, 2), three], 1)))
        seen = seen.flatten(2).transpose(1, 2)
        center = (seen[..., :2].sigmoid() * 2 - 0.5 + self.cells) * STRIDE
        half = (seen[..., 2:4].sigmoid() * 2).square() * (ANCHOR / 2)
        return {
            "boxes": torch.cat([center - half, center + half], -1),
            "objectness": seen[..., 4],
            "classes": seen[..., 5:],
        }


class Segmenter(nn.Module):
    """A U-Net: classes of pixels as logits (N, 4, 64, 64)."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.body = Body(width)
        self.up_two = _conv(6 * width, 2 * width)
        self.up_one = _conv(3 * width, width)
        self.head = nn.Conv2d(width, 1 + len(SHAPES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two, three = self.body(x)
        y = self.up_two(torch.cat([F.interpolate(three, scale_factor=2.0), two], 1))
        y = self.up_one(torch.cat([F.interpolate(y, scale_factor=2.0), one], 1))
        return F.interpolate(self.head(y), scale_factor=2.0)


def detection_loss(output: dict[str, torch.Tensor], target: list[dict]) -> torch.Tensor:
    """Objectness of all cells, boxes and classes of those that a box has its center in."""
    boxes, wanted = output["boxes"], torch.zeros_like(output["objectness"])
    images, cells, truths, labels = [], [], [], []
    for i, found in enumerate(target):
        center = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
        column, row = (center / STRIDE).long().clamp(0, SIZE // STRIDE - 1).unbind(1)
        cells.append(row * (SIZE // STRIDE) + column)
        images.append(torch.full_like(cells[-1], i))
        truths.append(found["boxes"])
        labels.append(found["labels"])
    image, cell, truth, label = (torch.cat(v) for v in (images, cells, truths, labels))
    wanted[image, cell] = 1.0
    objectness = F.binary_cross_entropy_with_logits(
        output["objectness"], wanted, pos_weight=wanted.new_tensor(4.0)
    )
    near = F.smooth_l1_loss(boxes[image, cell], truth) / 4
    return objectness + near + 0.5 * F.cross_entropy(output["classes"][image, cell], label)


def pixel_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy in which the shapes, a sixth of the pixels, count more than the ground."""
    weight = output.new_tensor([0.3, 1.0, 1.0, 1.0])
    return F.cross_entropy(output, target, weight)


class MeanAP:
    """The mean over classes of the average precision of boxes: mAP at an overlap of 0.5, and over
    0.5 to 0.95. Precision is interpolated at 101 recalls, as in COCO.

    The state is a row for each box that was found: class, score, and whether it hits at each
    overlap; and how many boxes of each class there are.
    """

    OVERLAPS = torch.linspace(0.5, 0.95, 10)

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []
        self.truths = torch.zeros(len(SHAPES))

    def update(self, output: dict[str, torch.Tensor], target: list[dict]) -> None:
        for i, truth in enumerate(target):
            boxes, scores, labels = chosen(*(output[k][i] for k in output))
            hits = _hits(boxes, labels, truth["boxes"], truth["labels"], self.OVERLAPS)
            rows = torch.cat([labels[:, None].float(), scores[:, None], hits.float()], 1)
            self.found.append(rows)
            self.truths = self.truths + torch.bincount(truth["labels"], minlength=len(SHAPES))

    def compute(self) -> dict[str, float]:
        rows = torch.cat(self.found)
        rows = rows[rows[:, 1].argsort(descending=True, stable=True)]
        found = torch.stack(
            [
                _average_precision(rows[rows[:, 0] == c, 2:], float(self.truths[c]))
                for c in range(len(SHAPES))
                if self.truths[c]
            ]
        ).mean(0)
        return {"map50": float(found[0]), "map": float(found.mean())}


def chosen(
    boxes: torch.Tensor, objectness: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The boxes of an image that count, the best first: no two that overlap by more than a half."""
    scores, labels = (objectness.sigmoid()[:, None] * classes.softmax(-1)).max(-1)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > 0.02]
    near = overlap(boxes[order], boxes[order]) > 0.5
    kept: list[int] = []
    for i in range(len(order)):
        if not bool(near[i, kept].any()):
            kept.append(i)
    order = order[kept]
    return boxes[order], scores[order], labels[order]


def _hits(
    boxes: torch.Tensor,
    labels: torch.Tensor,
    truths: torch.Tensor,
    kinds: torch.Tensor,
    overlaps: torch.Tensor,
) -> torch.Tensor:
    """Whether each box hits, (boxes, overlaps): the nearest of its class that no better box has."""
    hits = torch.zeros(len(boxes), len(overlaps), dtype=torch.bool)
    near = overlap(boxes, truths) * (labels[:, None] == kinds[None])
    left, rows = near.repeat(len(overlaps), 1, 1), torch.arange(len(overlaps))
    for i in range(len(boxes)):
        best, j = left[:, i].max(1)
        hits[i] = best >= overlaps
        left[rows[hits[i]], :, j[hits[i]]] = 0
    return hits


def _average_precision(hits: torch.Tensor, truths: float) -> torch.Tensor:
    """Of boxes in the order of their scores, (overlaps,)."""
    right = hits.cumsum(0)
    precision = right / torch.arange(1, len(hits) + 1)[:, None]
    recall = right / truths
    best = precision.flip(0).cummax(0).values.flip(0)
    marks = torch.linspace(0, 1, 101)
    at = torch.searchsorted(recall.T.contiguous(), marks.expand(hits.shape[1], -1).contiguous())
    padded = torch.cat([best, torch.zeros(1, hits.shape[1])])
    return padded.T.gather(1, at).mean(1)


class MeanIoU:
    """The mean over classes of intersection over union, from counts of pixels."""

    def __init__(self) -> None:
        self.counts = torch.zeros(4, 4, dtype=torch.int64)

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        pairs = 4 * target.flatten() + output.argmax(1).flatten()
        self.counts += torch.bincount(pairs, minlength=16).reshape(4, 4)

    def compute(self) -> float:
        both = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - both
        return float((both / union)[union > 0].mean())


def batched(images: torch.Tensor, targets: list | torch.Tensor, size: int = BATCH) -> list[tuple]:
    """Batches of (images, targets); the last one may be smaller."""
    return [(images[i : i + size], targets[i : i + size]) for i in range(0, len(images), size)]


def detection_data(**counts: int) -> dict[str, list]:
    """Train, calibration, validation and test batches of images and boxes. counts: of each."""
    scenes = {part: draw(SEEDS[part], n) for part, n in (COUNTS | counts).items()}
    return {part: batched(images, objects) for part, (images, objects, _) in scenes.items()}


def segmentation_data(**counts: int) -> dict[str, list]:
    """The same with classes of pixels."""
    scenes = {part: draw(SEEDS[part], n) for part, n in (COUNTS | counts).items()}
    return {part: batched(images, pixels) for part, (images, _, pixels) in scenes.items()}


def detector() -> Detector:
    """The trained detector."""
    return _trained(Detector(), "detector")


def segmenter() -> Segmenter:
    """The trained segmentation network."""
    return _trained(Segmenter(), "segmenter")


def _trained(network, name: str):
    network.load_state_dict(read_tensors(HERE / f"scenes_{name}.safetensors")[0])
    return network.eval()
