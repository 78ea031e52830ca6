"""From a picture to what a network takes: size, color, scale, mean and standard deviation, layout.

A network's own metadata says what it was trained with; what nobody says is guessed, and the guess
is named (`origin`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.runtimes.artifact import require

LAYOUTS = ("nchw", "nhwc")
COLORS = ("rgb", "bgr", "gray")
RESIZES = ("crop", "stretch", "pad")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
CROP = 0.875  # the usual share of the shorter side that a center crop keeps
WIDE = 1.5  # a mean beyond this is one of values from 0 to 255


@dataclass(frozen=True)
class Preprocessing:
    """height, width: of what the network takes. mean, std: of each channel, on values from 0 to
    `scale`. shorter: the pixels of the shorter side before a center crop. dtype: float32, or uint8
    for networks that take bytes; these have no mean. origin: where it was taken from. guessed:
    nobody says mean, deviation or scale.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    layout: str = "nchw"
    color: str = "rgb"
    resize: str = "crop"
    shorter: int = 0
    interpolation: str = "bilinear"
    dtype: str = "float32"
    origin: str = "what was asked for"
    guessed: bool = False

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        size = (self.height, self.width)
        return (self.channels, *size) if self.layout == "nchw" else (*size, self.channels)

    def __str__(self) -> str:
        plain = not any(self.mean) and set(self.std) == {1.0}
        normalized = f"0..{self.scale:g}" + (
            "" if plain else f", mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        )
        how = {
            "crop": f"shorter side to {self.shorter or self.height}, center crop",
            "stretch": "stretched",
            "pad": "fitted and padded",
        }[self.resize]
        return (
            f"{self.height}x{self.width} {self.color.upper()} {self.layout.upper()} {self.dtype}, "
            f"{how} ({self.interpolation}), {normalized}; from {self.origin}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v
            for f in fields(self)
        }

    def pixels(self, image: Any) -> np.ndarray:
        """(height, width, channels) of bytes: a PIL image, resized and cropped."""
        image = image.convert("L" if self.color == "gray" else "RGB")
        pixels = np.asarray(_resized(image, self), np.uint8)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return pixels[:, :, ::-1] if self.color == "bgr" else pixels

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """What the network takes of (height, width, channels) bytes."""
        if self.dtype == "uint8":
            found = pixels
        else:
            values = pixels.astype(np.float32) * np.float32(self.scale / 255)
            found = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.layout == "nchw":
            found = found.transpose(2, 0, 1)
        return np.ascontiguousarray(found)

    def pixels_of(self, values: np.ndarray) -> np.ndarray:
        """(height, width, channels) of bytes that gave these values: the inverse, for showing."""
        if self.layout == "nchw":
            values = values.transpose(1, 2, 0)
        if self.dtype != "uint8":
            values = (values * np.array(self.std, np.float32) + np.array(self.mean, np.float32)) * (
                255 / self.scale
            )
        found = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return found[:, :, ::-1] if self.color == "bgr" else found


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4g}" for v in values)


def _resized(image: Any, how: Preprocessing) -> Any:
    filters = require("PIL.Image", "images").Resampling
    kind = getattr(filters, how.interpolation.upper())
    width, height = image.size
    if how.resize == "stretch":
        return image.resize((how.width, how.height), kind)
    if how.resize == "pad":
        ratio = min(how.width / width, how.height / height)
        inner = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        canvas = require("PIL.Image", "images").new(image.mode, (how.width, how.height))
        corner = ((how.width - inner[0]) // 2, (how.height - inner[1]) // 2)
        canvas.paste(image.resize(inner, kind), corner)
        return canvas
    # As torchvision and timm: the shorter side first, then what is in the middle.
    shorter = max(how.shorter or max(how.height, how.width), how.height, how.width)
    ratio = shorter / min(width, height)
    size = (int(width * ratio), int(height * ratio))
    size = (max(size[0], how.width), max(size[1], how.height))
    image = image.resize(size, kind)
    left, top = round((size[0] - how.width) / 2), round((size[1] - how.height) / 2)
    return image.crop((left, top, left + how.width, top + how.height))


def usual_shorter(height: int, width: int) -> int:
    """224 is cut from 256, as is usual."""
    return round(max(height, width) / CROP)


def given(known: Preprocessing | None, options: Mapping[str, Any]) -> Preprocessing:
    """What the network's metadata say, with what the user says in its place.

    options: size, mean, std, scale, layout, color, resize, interpolation; None is not said. Raises
    `InputError` where nobody says the size, and where the numbers do not fit the channels.
    """
    said = {k: v for k, v in options.items() if v is not None}
    size = said.pop("size", None)
    if size is not None:
        height, width = _size(size)
        own = known
        if own is None:
            own = Preprocessing(height, width, origin="", guessed=True)
        wanted = replace(own, height=height, width=width, shorter=usual_shorter(height, width))
    elif known is not None:
        wanted = known
    else:
        raise InputError(
            "the network does not say what pictures it takes; give --size (in Python and recipes "
            "size), such as 224, and --mean and --std where it was trained with them"
        )
    for name in ("mean", "std"):
        if name in said:
            said[name] = tuple(float(v) for v in _listed(said[name]))
    if "mean" in said and "scale" not in said and known is None:
        said["scale"] = 255.0 if max(said["mean"]) > WIDE else 1.0
    if "scale" in said:
        said["scale"] = float(said["scale"])
    wanted = replace(wanted, **said)
    if said.keys() & {"mean", "std", "scale"}:
        wanted = replace(wanted, guessed=False)
    if size is not None or said:
        told = ["size"] * (size is not None) + [n for n in said]
        rest = f"; the rest from {known.origin}" if known is not None else ""
        wanted = replace(wanted, origin=f"what was asked for ({', '.join(told)}){rest}")
    return _fitting(wanted)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _size(value: Any) -> tuple[int, int]:
    numbers = [int(v) for v in _listed(value)]
    if len(numbers) not in (1, 2) or min(numbers) < 1 or max(numbers) > 2**14:
        raise InputError(f"size is {value!r}; expected pixels: one number, or height and width")
    return numbers[0], numbers[-1]


def _fitting(wanted: Preprocessing) -> Preprocessing:
    """With a mean and a standard deviation for each channel."""
    found = {}
    for name in ("mean", "std"):
        values = getattr(wanted, name)
        if len(set(values)) == 1:
            values = values[:1] * wanted.channels
        if len(values) != wanted.channels:
            raise InputError(
                f"{name} has {len(values)} numbers for {wanted.channels} channels "
                f"({wanted.color}); give one, or one for each channel"
            )
        found[name] = tuple(values)
    if min(found["std"]) <= 0:
        raise InputError(f"std is {_numbers(found['std'])}; standard deviations are positive")
    return replace(wanted, **found)


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """From timm's `pretrained_cfg`."""
    channels, height, width = config.get("input_size") or (3, 224, 224)
    share = config.get("crop_pct") or CROP
    squash = config.get("crop_mode") == "squash"
    return _fitting(
        Preprocessing(
            height,
            width,
            mean=tuple(config.get("mean") or (0.485, 0.456, 0.406)),
            std=tuple(config.get("std") or (0.229, 0.224, 0.225)),
            color="gray" if channels == 1 else "rgb",
            resize="stretch" if squash else "crop",
            shorter=int(max(height, width) / share),
            interpolation=_known(config.get("interpolation") or "bicubic"),
            origin="timm's pretrained_cfg",
        )
    )


def from_torchvision(transforms: Any) -> Preprocessing | None:
    """From what `weights.transforms()` gives; None for other than images."""
    if not hasattr(transforms, "mean"):
        return None
    crop = getattr(transforms, "crop_size", None)
    resize = getattr(transforms, "resize_size", None)
    size = _listed(crop or resize)
    height, width = int(size[0]), int(size[-1])
    shorter = int(_listed(resize or crop)[0])
    return Preprocessing(
        height,
        width,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize="crop" if crop else "stretch",
        shorter=shorter,
        interpolation=_known(getattr(transforms.interpolation, "value", "bilinear")),
        origin="torchvision's weights",
    )


def from_processor(config: Mapping[str, Any]) -> Preprocessing | None:
    """From `preprocessor_config.json` of Hugging Face; None where it is not of images."""
    size = config.get("size")
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    if size is None and crop is None:
        return None
    height, width, shorter = _sides(crop if crop is not None else size)
    if not height:
        height = width = shorter
    before = _sides(size)[2] if size is not None else 0
    by_side = isinstance(size, Mapping) and "shortest_edge" in size
    if crop is None and by_side:
        before = int(before / float(config.get("crop_pct") or 1))
    normalize = config.get("do_normalize", True)
    # Values are multiplied by 1/255, or by 1/127.5 for some.
    scale = 255.0 * float(config.get("rescale_factor", 1 / 255))
    scale = scale if config.get("do_rescale", True) else 255.0
    kinds = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    return _fitting(
        Preprocessing(
            height,
            width,
            mean=tuple(config["image_mean"]) if normalize and "image_mean" in config else (0.0,),
            std=tuple(config["image_std"]) if normalize and "image_std" in config else (1.0,),
            scale=scale,
            resize="crop" if crop is not None or by_side else "stretch",
            shorter=before or max(height, width),
            interpolation=kinds.get(config.get("resample", 2), "bilinear"),
            origin="preprocessor_config.json",
        )
    )


def _sides(size: Any) -> tuple[int, int, int]:
    """(height, width, shorter side), 0 for what is not said."""
    if isinstance(size, Mapping):
        return (
            int(size.get("height", 0)),
            int(size.get("width", 0)),
            int(size.get("shortest_edge", size.get("height", 0))),
        )
    numbers = [int(v) for v in _listed(size)]
    return numbers[0], numbers[-1], min(numbers)


def _known(name: str) -> str:
    return name if name in INTERPOLATIONS else "bilinear"


def from_shape(
    shape: Sequence[int | None] | None, dtype: str, origin: str, metadata: Mapping[str, str] = {}
) -> Preprocessing | None:
    """From an input of a file and its metadata: layout and size where these are fixed; None for
    what takes no pictures.

    metadata: of ONNX files. Those of Ultralytics (`imgsz`) say a size, and that values are 0..1
    and pictures padded; `mean` and `std` may be lists as JSON.
    """
    if shape is None or len(shape) != 4:
        return None
    layout = "nhwc" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "nchw"
    channels = shape[3] if layout == "nhwc" else shape[1]
    if channels not in (1, 3):
        return None
    height, width = (shape[1], shape[2]) if layout == "nhwc" else (shape[2], shape[3])
    told = {k: _json(metadata.get(k)) for k in ("imgsz", "size", "mean", "std", "scale")}
    size = told["imgsz"] or told["size"]
    if not height or not width:
        if size is None:
            return None
        height, width = _size(size)
    found = Preprocessing(
        height,
        width,
        layout=layout,
        color="gray" if channels == 1 else "rgb",
        resize="pad" if told["imgsz"] else "crop",
        shorter=usual_shorter(height, width),
        dtype="uint8" if dtype == "uint8" else "float32",
        scale=255.0 if dtype == "uint8" else 1.0,
        origin=origin,
        guessed=dtype != "uint8" and not told["imgsz"],
    )
    own = {n: tuple(_listed(told[n])) for n in ("mean", "std") if told[n] is not None}
    if own:
        scale = 255.0 if max(own.get("mean", (0,))) > WIDE else 1.0
        own |= {"scale": float(told["scale"] or scale), "guessed": False}  # pyright: ignore
    return _fitting(replace(found, **own))  # pyright: ignore[reportArgumentType]


def _json(text: str | None) -> Any:
    """A number or a list of numbers; None for anything else."""
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    numbers = _listed(found)
    return found if all(isinstance(v, (int, float)) for v in numbers) else None
