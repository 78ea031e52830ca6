"""Wrong preprocessing is said with its remedy, and right preprocessing is not."""

import pytest
import torch

from mirabelle.base.png import URI
from mirabelle.sources.check import Checked, check, kappa
from mirabelle.sources.data import read
from mirabelle.sources.sheet import described, tiles, write_sheet
from tests.sources.pictures import Colors, folder

pytest.importorskip("PIL")
NAMES = ["blue", "green", "red"]


class Normalized(Colors):
    """Colors on pictures whose mean was taken off: right on these alone."""

    def forward(self, x):
        return super().forward((x - 0.7).relu())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("photos"), 20)


def data(photos, **options):
    return read(photos, size=24, resize="stretch", as_part="test", **options)


def test_right_preprocessing_says_nothing(photos):
    found = check(Colors((2, 1, 0)), data(photos))
    assert found == Checked([], 48, 1.0, 1.0)


def test_colors_in_the_other_order(photos):
    (said,) = check(Colors((2, 1, 0)), data(photos, color="bgr")).warnings
    assert "48 pictures are right with --color rgb" in said and said.endswith("try --color rgb")
    assert said.startswith("the preprocessing may be wrong: 100 %")


def test_labels_in_another_order(photos):
    """Red is called green, green blue and blue red: no way of seeing the pictures helps."""
    (said,) = check(Colors((1, 0, 2)), data(photos, classes=["blue", "red", "green"])).warnings
    assert "labels may be in another order" in said


def test_values_that_are_too_small(photos):
    """The network sees nothing of pictures from 0 to 1 that a mean was taken off twice."""
    (said,) = check(Normalized((2, 1, 0)), data(photos, mean=0.5, std=1.0)).warnings
    assert "may be wrong" in said and "--mean 0 --std 1" in said


def test_networks_without_classes_are_left_alone(photos):
    assert check(torch.nn.Conv2d(3, 4, 3), data(photos)) == Checked()


def test_kappa_by_hand():
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    # equal 3/4; by chance (2 * 1 + 2 * 3) / 16 = 1/2
    assert kappa(a, b) == pytest.approx(0.5)
    assert kappa(a, a) == 1 and kappa(torch.zeros(4).long(), torch.zeros(4).long()) == 0


def test_the_contact_sheet_shows_what_the_network_sees(photos, tmp_path):
    found = read(photos, size=24, resize="stretch", mean=0.5, std=0.25, color="bgr")
    shown = tiles(found, 4)
    for pixels, name in shown:
        square = pixels[8:14, 8:12].reshape(-1, 3).mean(0)
        assert ["red", "green", "blue"][int(square.argmax())] == name
    assert (
        write_sheet(found, tmp_path / "sheet.png")
        and (tmp_path / "sheet.png").read_bytes()[1:4] == b"PNG"
    )
    picture = pytest.importorskip("PIL.Image").open(tmp_path / "sheet.png")
    # 24 pixels are shown as 96: the square of the first one, and what is behind its last corner
    first = shown[0][0]
    assert picture.getpixel((2 + 4 * 10, 2 + 4 * 10)) == tuple(first[10, 10])
    assert picture.getpixel((2 + 95, 2 + 95)) == tuple(first[23, 23])
    sheet = described(found)
    assert sheet is not None and URI.fullmatch(sheet["picture"])
    assert sheet["captions"] == [name for _, name in tiles(found)] and len(sheet["captions"]) == 18
