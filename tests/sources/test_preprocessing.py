"""How pictures become inputs: what metadata say, against what they mean."""

import numpy as np
import pytest

from mirabelle.base.errors import InputError
from mirabelle.sources import preprocessing
from mirabelle.sources.preprocessing import Preprocessing, from_shape, given

VIT = {
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "resample": 3,
}


def test_pretrained_cfg_of_timm():
    config = {"input_size": (3, 300, 260), "crop_pct": 0.9, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    how = preprocessing.from_timm({**config, "interpolation": "bicubic"})
    assert (how.height, how.width, how.shorter, how.interpolation) == (300, 260, 333, "bicubic")
    assert how.mean == (0.5,) * 3 and how.resize == "crop"
    assert preprocessing.from_timm({**config, "crop_mode": "squash"}).resize == "stretch"


def test_preprocessor_config():
    how = preprocessing.from_processor(VIT)
    assert (how.height, how.resize, how.interpolation, how.scale) == (224, "stretch", "bicubic", 1)
    cropped = {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}
    how = preprocessing.from_processor(VIT | cropped)
    assert (how.height, how.shorter, how.resize) == (224, 256, "crop")
    half = preprocessing.from_processor(VIT | {"rescale_factor": 1 / 127.5})
    assert half.scale == pytest.approx(2) and preprocessing.from_processor({"vocab": 3}) is None
    plain = preprocessing.from_processor(VIT | {"do_normalize": False})
    assert plain.mean == (0, 0, 0) and plain.std == (1, 1, 1)


def test_shapes_of_files():
    assert from_shape((None, 3, 224, 192), "float32", "a").shape == (3, 224, 192)
    wide = from_shape((1, 96, 96, 3), "uint8", "a")
    assert (wide.layout, wide.dtype, wide.scale) == ("nhwc", "uint8", 255)
    assert from_shape((None, 1, 28, 28), "float32", "a").color == "gray"
    for shape in ((None, 128), (None, 3, None, None), (None, 7, 8, 8), None):
        assert from_shape(shape, "float32", "a") is None
    assert from_shape((None, 1, 28, 28), "float32", "a").guessed and not wide.guessed
    yolo = from_shape((None, 3, None, None), "float32", "a", {"imgsz": "[640, 480]", "names": "{}"})
    assert (yolo.height, yolo.width, yolo.resize) == (640, 480, "pad")
    told = from_shape((1, 3, 8, 8), "float32", "a", {"mean": "[120, 110, 100]", "std": "[60]"})
    assert told.scale == 255 and told.std == (60.0,) * 3
    assert not told.guessed and not yolo.guessed


def test_what_is_said_counts_more_than_metadata_and_is_named():
    known = preprocessing.from_timm({"input_size": (3, 224, 224)})
    how = given(known, {"mean": [0.0], "size": 160})
    assert how.mean == (0.0,) * 3 and how.std == known.std
    assert how.height == 160 and how.shorter == round(160 / 0.875)
    assert given(None, {"size": 8}).guessed and not given(None, {"size": 8, "mean": 0.5}).guessed
    assert how.origin == "what was asked for (size, mean); the rest from timm's pretrained_cfg"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": [0]}, "expected pixels"),
        ({"size": 8, "std": [0.0]}, "std is 0 0 0; standard deviations are positive"),
        ({"size": 8, "mean": [1, 2], "color": "gray"}, "mean has 2 numbers for 1 channels"),
    ],
)
def test_what_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        given(None, options)


def test_pixels_come_back_from_values():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for how in (
        Preprocessing(5, 7, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)),
        Preprocessing(5, 7, layout="nhwc", scale=255.0),
        Preprocessing(5, 7, dtype="uint8", scale=255.0),
    ):
        values = how.normalized(pixels)
        assert values.shape == how.shape and np.array_equal(how.pixels_of(values), pixels)
    turned = Preprocessing(5, 7, color="bgr")
    assert np.array_equal(turned.pixels_of(turned.normalized(pixels[:, :, ::-1])), pixels)


def test_crops_are_those_of_torchvision():
    """Its Resize and CenterCrop, on pictures of odd sizes."""
    image = pytest.importorskip("PIL.Image")
    vision = pytest.importorskip("mirabelle.sources.torchvision")
    try:
        transforms = vision.torchvision().transforms
    except ImportError:
        pytest.skip("torchvision is not installed")
    rng = np.random.default_rng(0)
    for size in ((50, 37), (33, 60), (41, 41)):
        picture = image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
        theirs = transforms.CenterCrop(24)(transforms.Resize(27)(picture))
        ours = Preprocessing(24, 24, shorter=27).pixels(picture)
        assert np.array_equal(ours, np.asarray(theirs)), size


def test_padding_keeps_the_whole_picture():
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(np.full((10, 20, 3), 255, np.uint8))
    found = Preprocessing(8, 8, resize="pad").pixels(picture)
    assert found[:2].max() == 0 and found[2:6].min() == 255 and found[6:].max() == 0
