"""Fashion-MNIST (Xiao et al. 2017, MIT): the data, and a residual network trained on it by
`examples/train_fashion.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from examples.debian import unpacked
from mirabelle.base.data import cache_folder
from mirabelle.base.errors import InputError
from mirabelle.base.files import atomic, sha256

WEIGHTS = Path(__file__).parent / "weights" / "fashion_resnet.safetensors"
# The authors' repository and their server, which has no HTTPS; what comes is checked in any case.
OFFICIAL = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
LARGEST = 64_000_000  # bytes of one file, compressed or not: the largest has 47 million
DEBIAN = "dataset-fashion-mnist"
# SHA-256 of the uncompressed files: the two sources compress them differently.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MEAN, STD = 0.2860, 0.3530
CLASSES = [
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]


# --- the data
# --------------------------------------------------------------------------------------------------


def _sound(path: Path, name: str) -> bool:
    return path.is_file() and sha256(path) == FILES[name]


def _from_official(server: str, name: str) -> bytes:
    with urllib.request.urlopen(f"{server}/{name}.gz", timeout=15) as answer:
        return _unpacked(answer, f"{name} from {server}")


def _unpacked(stream: IO[bytes], what: str) -> bytes:
    """The content of a gzip stream, of which no more than `LARGEST` bytes are read or made."""
    packed = stream.read(LARGEST + 1)
    content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(LARGEST + 1)
    if max(len(packed), len(content)) > LARGEST:
        raise InputError(f"{what} has more than {LARGEST} bytes; it has been changed")
    return content


def _store(folder: Path, name: str, content: bytes, source: str) -> None:
    if (found := hashlib.sha256(content).hexdigest()) != FILES[name]:
        raise InputError(
            f"{name} from {source} has SHA-256 {found}, expected {FILES[name]}; it is damaged "
            "or has been changed"
        )
    with atomic(folder / name) as temporary:
        temporary.write_bytes(content)


def fetch(folder: Path | None = None) -> Path:
    """The folder with the four files, each checked against its SHA-256; downloads what is missing
    or damaged.
    """
    folder = folder or cache_folder() / "fashion-mnist"
    missing = [name for name in FILES if not _sound(folder / name, name)]
    if not missing:
        return folder
    print(f"fetching Fashion-MNIST (31 MB) into {folder}", file=sys.stderr)
    failures = []
    for server in OFFICIAL:
        try:
            for name in missing:
                _store(folder, name, _from_official(server, name), server)
            return folder
        except (OSError, EOFError, zlib.error, InputError) as error:
            failures.append(f"{server}: {error}")
    installed = Path("/usr/share/datasets/fashion-mnist")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            source = (
                installed
                if installed.is_dir()
                else unpacked(DEBIAN, Path(temporary)) / installed.relative_to("/")
            )
            for name in missing:
                with open(source / f"{name}.gz", "rb") as file:
                    _store(folder, name, _unpacked(file, name), DEBIAN)
            return folder
    except (OSError, EOFError, zlib.error, InputError) as error:
        failures.append(str(error))
    raise InputError(
        "Fashion-MNIST could not be fetched:\n  "
        + "\n  ".join(failures)
        + f"\nput {', '.join(FILES)} (uncompressed) into {folder}"
    )


def images_and_labels(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`part` is `train` (60 000) or `t10k` (10 000): images (N, 1, 28, 28) float32, normalized, and
    labels (N,) int64.
    """
    folder = fetch()
    images = np.frombuffer(
        (folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16
    ).reshape(-1, 1, 28, 28)
    labels = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return (torch.from_numpy(images.astype(np.float32)) / 255 - MEAN) / STD, torch.from_numpy(
        labels.astype(np.int64)
    )


class Augmented(Dataset):
    """Whole batches by index list, randomly flipped and shifted by up to two pixels: transforms
    image by image would cost more than the network.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, erase: bool = False):
        self.images, self.labels, self.erase = images, labels, erase

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.images[indices]
        n = len(x)
        flip = torch.rand(n, 1, 1, 1) < 0.5
        x = torch.where(flip, x.flip(3), x)
        padded = nn.functional.pad(x, (2, 2, 2, 2), value=-MEAN / STD)
        dy, dx = torch.randint(0, 5, (2, n, 1, 1, 1))
        rows = torch.arange(28).view(1, 1, 28, 1) + dy
        columns = torch.arange(28).view(1, 1, 1, 28) + dx
        x = padded[torch.arange(n).view(n, 1, 1, 1), 0, rows, columns]
        if self.erase:
            y0, x0 = torch.randint(0, 21, (2, n, 1, 1, 1))
            grid_y, grid_x = torch.arange(28).view(1, 1, 28, 1), torch.arange(28).view(1, 1, 1, 28)
            hole = (
                (grid_y >= y0)
                & (grid_y < y0 + 8)
                & (grid_x >= x0)
                & (grid_x < x0 + 8)
                & (torch.rand(n, 1, 1, 1) < 0.5)
            )
            x = torch.where(hole, torch.tensor(-MEAN / STD), x)
        return x, self.labels[indices]


def _as_is(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch


class Plain(Augmented):
    """Whole batches by index list, as they are."""

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[indices], self.labels[indices]


class Loaders(NamedTuple):
    train: DataLoader
    calibration: DataLoader
    test: DataLoader
    validation: DataLoader


def data(batch_size: int = 128, erase: bool = False) -> Loaders:
    """Train on 55 000, validate on the last 5 000 of the 60 000, calibrate on 512 of the first; the
    10 000 test images choose nothing.

    erase: also blank out squares of training images (Zhong et al. 2020), as when the network was
    trained from scratch.
    """
    images, labels = images_and_labels("train")
    test_images, test_labels = images_and_labels("t10k")
    return Loaders(
        train=DataLoader(
            Augmented(images[:55000], labels[:55000], erase),
            batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=_as_is,
        ),
        calibration=DataLoader(Plain(images[:512], labels[:512]), 64, collate_fn=_as_is),
        test=DataLoader(Plain(test_images, test_labels), 250, collate_fn=_as_is),
        validation=DataLoader(Plain(images[55000:], labels[55000:]), 250, collate_fn=_as_is),
    )


def plain(batch_size: int = 128) -> Loaders:
    """The same without augmentation: a network that was trained with it and is only cut and taught
    again learns faster from images as they are.
    """
    loaders = data(batch_size)
    seen = Plain(loaders.train.dataset.images, loaders.train.dataset.labels)  # type: ignore[attr-defined]
    return loaders._replace(
        train=DataLoader(seen, batch_size, shuffle=True, drop_last=True, collate_fn=_as_is)
    )


# --- the network
# --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """The basic residual block. He et al. 2016, figure 2."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for (N, 1, 28, 28) images: three stages at 28, 14 and 7 pixels."""

    def __init__(
        self, width: int = 32, blocks: tuple[int, int, int] = (1, 1, 2), classes: int = 10
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            layers = [
                Block(inputs if j == 0 else outputs, outputs, 2 if stage and j == 0 else 1)
                for j in range(count)
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


def untrained() -> ResNet:
    return ResNet()


def resnet() -> ResNet:
    """The trained network; its accuracy is in the README."""
    model = ResNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()
