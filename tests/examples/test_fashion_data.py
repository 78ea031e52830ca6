"""What is downloaded for the example is bounded and checked, whoever answers."""

import gzip
import io

import pytest

from examples import fashion
from mirabelle.base.errors import InputError


def answer_with(monkeypatch, content):
    asked = []

    def urlopen(address, timeout):
        asked.append(address)
        return io.BytesIO(content)

    monkeypatch.setattr(fashion.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(fashion, "unpacked", lambda *a: (_ for _ in ()).throw(InputError("no apt")))
    return asked


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x" * 2000, "Not a gzipped file"),
        (gzip.compress(b"\0" * 10_000_000), "more than 1000 bytes"),
        (gzip.compress(b"other"), "expected c59f"),
        (gzip.compress(b"other")[:-9], "ended before"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 50, "Error"),
        (b"", "expected c59f"),
    ],
    ids=["no gzip", "a bomb", "other data", "cut off", "damaged", "nothing"],
)
def test_answers_that_are_not_the_data(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(fashion, "LARGEST", 1000)
    asked = answer_with(monkeypatch, content)
    with pytest.raises(InputError, match=words):
        fashion.fetch(tmp_path)
    assert asked[0].startswith("https://") and not list(tmp_path.iterdir())


def test_no_more_is_read_than_the_bound(monkeypatch):
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            assert size >= 0, "all of it"
            Endless.given += size
            return b"\0" * size

    monkeypatch.setattr(fashion, "LARGEST", 1000)
    with pytest.raises((InputError, OSError)):
        fashion._unpacked(Endless(), "it")
    assert Endless.given <= 1001
