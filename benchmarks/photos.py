"""Photographs that come with Python packages, as calibration and test sets for ImageNet networks.

Calibration: random crops of the photographs of scikit-image and scikit-learn. Test: random crops of
foolbox's 20 ImageNet photographs (`pip install foolbox==3.3.4 scikit-image scikit-learn
--no-deps`). No photograph is in both. There are no ImageNet labels for a crop: what is measured is
agreement with the float network, and an interval must count photographs, not crops.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CALIBRATION = {
    "skimage/data": [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "rocket.jpg",
        "ihc.png",
        "retina.jpg",
        "hubble_deep_field.jpg",
    ],
    "sklearn/datasets/images": ["china.jpg", "flower.jpg"],
}
MEAN = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
}


def _folder(inside: str) -> Path:
    package, _, rest = inside.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the photographs come with {package}, which is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / rest


def _crops(photos: list[Path], count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size, 3) bytes: each photograph in turn, a random part of 35 to 100 % of its
    area with a ratio of 3/4 to 4/3, half of them mirrored.
    """
    generator = np.random.default_rng(seed)
    images = [Image.open(p).convert("RGB") for p in photos]
    found = []
    for i in range(count):
        image = images[i % len(images)]
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        area = generator.uniform(0.35, 1.0) * image.width * image.height
        width, height = (
            min(image.width, round((area * ratio) ** 0.5)),
            min(image.height, round((area / ratio) ** 0.5)),
        )
        left, top = (
            generator.integers(image.width - width + 1),
            generator.integers(image.height - height + 1),
        )
        crop = image.resize(
            (size, size), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
        )
        pixels = np.asarray(crop)
        found.append(pixels[:, ::-1] if generator.random() < 0.5 else pixels)
    return np.stack(found)


def _tensor(pixels: np.ndarray, normalization: str) -> torch.Tensor:
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in MEAN[normalization])
    return (torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def calibration(count: int = 300, size: int = 224, normalization: str = "imagenet") -> torch.Tensor:
    """(count, 3, size, size) float32."""
    photos = [_folder(f) / name for f, names in CALIBRATION.items() for name in names]
    return _tensor(_crops(photos, count, size, 0), normalization)


def test(
    count: int = 500, size: int = 224, normalization: str = "imagenet"
) -> tuple[torch.Tensor, np.ndarray]:
    """(count, 3, size, size) float32, and the number of the photograph that each is of."""
    photos = sorted((_folder("foolbox/data")).glob("imagenet_*.jpg"))
    return _tensor(_crops(photos, count, size, 1), normalization), np.arange(count) % len(photos)
