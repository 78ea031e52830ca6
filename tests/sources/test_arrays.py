"""Arrays in files, and folders of Hugging Face's datasets."""

import pickle

import numpy as np
import pytest
import torch

from mirabelle.base.errors import InputError
from mirabelle.sources.data import read
from mirabelle.sources.preprocessing import Preprocessing


def test_npz_with_labels_and_parts(tmp_path):
    x, y = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    inputs, targets = next(iter(read(tmp_path / "a.npz", as_part="test").loaders.test))
    assert torch.equal(inputs[:, 0].long() // 2, targets) and len(targets) == 20
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    loaders = read(tmp_path / "b.npz").loaders
    assert len(loaders.train.indices) == 20 and sorted(next(iter(loaders.test))[1].tolist()) == [
        0,
        1,
        2,
    ]


def test_several_inputs_by_name_and_no_labels(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.ones((4, 7), np.int64), mask=np.ones((4, 7), np.int64))
    batch = next(iter(read(tmp_path / "a.npz", as_part="test").loaders.test))
    assert set(batch) == {"ids", "mask"} and batch["ids"].shape == (4, 7)


def test_npy_stays_on_the_disk_and_has_labels_beside_it(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((6, 3)))
    data = read(tmp_path / "a.npy", as_part="test")
    assert isinstance(data.table.read.inputs[""], np.ndarray) and not data.labeled
    assert next(iter(data.loaders.test)).dtype == torch.float32
    np.save(tmp_path / "a_labels.npy", np.arange(6))
    assert sorted(
        next(iter(read(tmp_path / "a.npy", as_part="test").loaders.test))[1].tolist()
    ) == (list(range(6)))


def test_bytes_are_pictures_where_the_network_says_how(tmp_path):
    pytest.importorskip("PIL")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    how = Preprocessing(8, 8)
    found = next(iter(read(tmp_path / "a.npz", known=how, as_part="test").loaders.test))
    assert found.shape == (3, 3, 8, 8) and 0.9 < float(found.max()) <= 1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, r"inputs 3, labels 4"),
        ({"x": np.ones((0, 2))}, "other numbers of samples"),
        ({"x": np.array(["a", "b"])}, "expected numbers"),
        ({"y": np.ones(3)}, "expected inputs as 'x'"),
    ],
)
def test_npz_that_is_wrong(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "a.npz")


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_objects_are_not_unpickled(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()], dtype=object)
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, bomb)
    with pytest.raises(InputError, match="objects are not read"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        read(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_datasets_on_the_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"ids": [[1, 2]] * 4, "label": [0, 1, 0, 1]})
    rows.save_to_disk(tmp_path / "d")
    batch, targets = next(iter(read(tmp_path / "d", as_part="test").loaders.test))
    assert batch["ids"].shape == (4, 2) and sorted(targets.tolist()) == [0, 0, 1, 1]


def test_without_datasets_the_error_says_what_to_install(tmp_path):
    try:
        import datasets  # noqa: F401
    except ImportError:
        (tmp_path / "dataset_info.json").write_text("{}")
        with pytest.raises(ImportError, match=r"pip install 'mirabelle\[datasets\]'"):
            read(tmp_path)
