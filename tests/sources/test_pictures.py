"""Folders and lists of pictures: labels, parts, damage, and what is named where it is wrong."""

import numpy as np
import pytest
import torch

from mirabelle.base.errors import InputError
from mirabelle.sources.data import read
from mirabelle.sources.samples import PARTS, Samples
from tests.sources.pictures import folder, picture, write

pytest.importorskip("PIL")


def samples(data):
    found = {id(p): p for n in PARTS if (p := getattr(data.loaders, n)) is not None}
    return list(found.values())


def everything(loader):
    batches = list(loader)
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


def test_folders_of_classes_are_labels_in_the_order_of_their_names(tmp_path):
    data = read(folder(tmp_path / "p"), size=[30, 40], as_part="test")
    inputs, targets = everything(data.loaders.test)
    assert data.table.classes == ("blue", "green", "red")
    assert (
        inputs.shape == (24, 3, 30, 40) and sorted(targets.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    )
    # blue is class 0 and the third channel
    brightest = inputs.amax((2, 3)).argmax(1)
    assert torch.equal(brightest, 2 - targets)


def test_the_networks_order_of_classes_counts(tmp_path):
    data = read(folder(tmp_path), size=30, as_part="test", classes=["red", "green", "blue"])
    inputs, targets = everything(data.loaders.test)
    assert torch.equal(inputs.amax((2, 3)).argmax(1), targets)
    with pytest.raises(InputError, match="'green' is none of the network's 2 classes"):
        read(tmp_path, size=30, classes=["red", "blue"])


def test_values_are_scaled_and_normalized_as_said(tmp_path):
    pixels = picture(0, 7)
    write(tmp_path / "a.png", 0, 7)
    plain = next(iter(read(tmp_path, size=[30, 40], resize="stretch").loaders.test))
    assert np.allclose(plain[0].numpy(), (pixels / np.float32(255)).transpose(2, 0, 1))
    options = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "layout": "nhwc", "color": "bgr"}
    other = next(iter(read(tmp_path, size=[30, 40], resize="stretch", **options).loaders.test))[
        0
    ].numpy()
    by_hand = (pixels[:, :, ::-1].astype(np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.1]
    assert other.shape == (30, 40, 3) and np.allclose(other, by_hand, atol=1e-5)
    wide = next(
        iter(read(tmp_path, size=[30, 40], resize="stretch", mean=120, std=60).loaders.test)
    )[0].numpy()
    assert np.allclose(wide, (pixels.transpose(2, 0, 1) - 120.0) / 60.0, atol=1e-5)


def test_a_flat_folder_has_no_labels(tmp_path):
    data = read(folder(tmp_path, classes=False), size=16, batch=5)
    assert data.labeled is False
    assert all(isinstance(b, torch.Tensor) for b in data.loaders.test)


def test_every_sample_is_in_one_part_and_an_added_one_moves_no_other(tmp_path):
    data = read(folder(tmp_path, 20), size=8)
    places = {n: set(data.loaders.__dict__[n].indices) for n in ("train", "validation", "test")}
    assert sum(len(p) for p in places.values()) == len(set().union(*places.values()))
    assert min(len(p) for p in places.values()) > 0

    def by_name(data):
        return {
            data.table.names[i]: n
            for n in ("train", "validation", "test")
            for i in data.loaders.__dict__[n].indices
        }

    before = by_name(data)
    write(tmp_path / "red" / "new.png", 0, 999)
    after = by_name(read(tmp_path, size=8))
    assert {k: v for k, v in after.items() if k in before} == before


def test_passes_read_the_same_and_train_is_mixed_by_its_generator(tmp_path):
    loaders = read(folder(tmp_path), size=8, batch=4).loaders
    first, second = everything(loaders.test), everything(loaders.test)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    loaders.train.generator.manual_seed(3)
    a = everything(loaders.train)[1]
    b = everything(loaders.train)[1]
    loaders.train.generator.manual_seed(3)
    assert torch.equal(everything(loaders.train)[1], a) and not torch.equal(a, b)


def test_folders_called_after_parts_are_these(tmp_path):
    folder(tmp_path / "train", 3), folder(tmp_path / "val", 2)
    loaders = read(tmp_path, size=8).loaders
    assert isinstance(loaders.train, Samples) and isinstance(loaders.test, Samples)
    assert len(loaders.train.indices) == 9 and len(loaders.validation.indices) == 6
    assert list(loaders.test.indices) == list(loaders.validation.indices)


def test_damaged_pictures_are_named_and_left_out_or_are_errors(tmp_path):
    folder(tmp_path)
    (tmp_path / "red" / "0.png").write_bytes(b"no picture")
    data = read(tmp_path, size=8, as_part="test")
    with pytest.warns(UserWarning, match=r"left out, 1 so far: .*red/0.png is no whole picture"):
        assert len(everything(data.loaders.test)[1]) == 23
    assert len(everything(data.loaders.test)[1]) == 23  # said once
    with pytest.raises(InputError, match="0.png is no whole picture"):
        list(read(tmp_path, size=8, as_part="test", strict=True).loaders.test)


def test_lists_have_labels_groups_and_parts(tmp_path):
    lines = ["path,label,group"]
    for i in range(24):
        write(tmp_path / "p" / f"{i}.png", i % 3, i)
        lines.append(f"p/{i}.png,{'cat dog emu'.split()[i % 3]},g{i // 2}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    data = read(tmp_path / "a.csv", size=8)
    assert data.table.classes == ("cat", "dog", "emu")
    for i in range(12):  # the two of a group are together
        where = [set(data.loaders.__dict__[n].indices) for n in ("train", "validation", "test")]
        assert (
            sum({2 * i, 2 * i + 1} <= w for w in where)
            + sum(not {2 * i, 2 * i + 1} & w for w in where)
            == 3
        )
    text = "path,label,split\np/0.png,4,train\np/1.png,2,test\n"
    (tmp_path / "b.csv").write_text(text)
    loaders = read(tmp_path / "b.csv", size=8).loaders
    assert everything(loaders.train)[1].tolist() == [4]
    assert everything(loaders.test)[1].tolist() == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na.png,1", "no column of paths"),
        ("path\nmissing.png", "line 2: .*missing.png is not there"),
        ("path,split\np.png,trian", "'trian' is no part"),
        ("path,label\np.png", "not as many fields"),
        ("path", "no lines below"),
        ("\x00", "no CSV file|no lines|no column"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, words):
    write(tmp_path / "p.png", 0, 0)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "a.csv", size=8)


def test_folders_that_are_wrong(tmp_path):
    with pytest.raises(InputError, match="there is no data 'nowhere'; expected a folder"):
        read("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        read(tmp_path / "empty", size=8)
    folder(tmp_path / "p", 1)
    with pytest.raises(InputError, match="does not say what pictures it takes; give --size"):
        read(tmp_path / "p")
    write(tmp_path / "p" / "stray.png", 0, 0)
    with pytest.raises(InputError, match="pictures beside them, such as stray.png"):
        read(tmp_path / "p", size=8)
    with pytest.raises(InputError, match="mean has 2 numbers for 3 channels"):
        read(tmp_path / "p", size=8, mean=[1, 2])
