"""Pictures inside of text: bytes that a decoder reads back."""

import base64
import io

import numpy as np
import pytest

from mirabelle.base.errors import InputError
from mirabelle.base.png import URI, encode, shrunk, uri


@pytest.mark.parametrize("channels", [1, 3])
def test_a_decoder_reads_what_was_written(channels):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    read = np.asarray(image.open(io.BytesIO(encode(pixels)))).reshape(pixels.shape)
    assert (read == pixels).all()


def test_a_uri_holds_the_file():
    file = encode(np.zeros((1, 1, 1), np.uint8))
    found = uri(file)
    assert URI.fullmatch(found) and base64.b64decode(found.partition(",")[2]) == file
    assert not URI.fullmatch('data:image/png;base64,AA" onload="')


def test_squares_become_their_mean():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    # rows 0 1 | 6 7 -> 3.5, rounded half to even
    assert shrunk(pixels, 3)[:, :, 0].tolist() == [[4, 6, 8], [16, 18, 20]]
    assert shrunk(pixels, 6) is pixels
    assert shrunk(np.zeros((100, 2, 3), np.uint8), 10).shape == (50, 1, 3)


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3))]
)
def test_what_is_no_picture_is_refused(pixels):
    with pytest.raises(InputError, match="got .* of "):
        encode(pixels)
