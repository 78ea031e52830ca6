"""The cache: the same weights as without it, no teacher on views that are known, and nothing wrong
from a damaged or a stranger's file.
"""

import copy
import sys
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.distillation.api import run
from mirabelle.distillation.cache import Cache
from mirabelle.distillation.outputs import Encoding, read_segment, write_segment
from tests.tiny import Noisy, model, teacher

pytestmark = pytest.mark.usefixtures("one_thread")


class StopError(Exception):
    pass


class Counting(nn.Module):
    """A teacher that counts the samples that it is asked about, and refuses the 6th question and
    later ones if told so. Deep copies count together.
    """

    def __init__(self, net: nn.Module | None = None, stops: bool = False):
        super().__init__()
        self.net = net or teacher()
        self.asked: list[int] = []
        self.stops = [stops]  # a list: what interrupts is no part of the teacher

    def forward(self, x):
        self.asked.append(len(x))
        if self.stops[0] and len(self.asked) > 6:
            raise StopError
        return self.net(x)

    def __deepcopy__(self, memo):
        new = Counting(copy.deepcopy(self.net, memo), self.stops[0])
        new.asked = self.asked
        return new


def loader(count: int = 24, **options) -> DataLoader:
    return DataLoader(Noisy(count), **{"batch_size": 8, "shuffle": True, **options})


def same(a, b) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x)


OPTIONS = {
    "losses": {"kd": 1.0, "dist": 1.0},
    "epochs": 5,
    "lr": 0.02,
    "views": 2,
    "precision": "float32",
}


def test_same_weights_as_uncached_and_the_teacher_runs_once_for_each_view(tmp_path):
    whole = run(model(), teacher(), loader(), **OPTIONS)
    asks = Counting()
    cached = run(model(), asks, loader(), cache=tmp_path, **OPTIONS)
    assert same(cached.model, whole.model) and cached.history == whole.history
    assert sum(asks.asked) == 2 * 24 + 2 + 2, "two views, and two looks at the shapes"
    asks.asked.clear()
    again = run(model(), asks, loader(), cache=tmp_path, **OPTIONS)
    assert same(again.model, whole.model)
    assert sum(asks.asked) == 2 + 2 + 8, (
        "two looks at the shapes, and one batch that is compared with the cache"
    )


def test_another_student_batch_size_and_order_pays_no_teacher(tmp_path):
    data = [(Noisy(24, 0.0)[i][0][None]) for i in range(24)]
    asks = Counting()
    run(
        model(),
        asks,
        [torch.cat(data[:12]), torch.cat(data[12:])],
        cache=tmp_path,
        losses={"kd": 1.0},
        precision="float32",
    )
    asks.asked.clear()
    other = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
    backwards = [torch.cat(data[i : i + 5][::-1]) for i in range(0, 20, 5)]
    a = run(
        other, asks, backwards, cache=tmp_path, losses={"kd": 1.0}, epochs=2, precision="float32"
    )
    assert sum(asks.asked) == 2 + 2 + 5
    b = run(other, teacher(), backwards, losses={"kd": 1.0}, epochs=2, precision="float32")
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def test_stopped_and_resumed_with_a_cache(tmp_path):
    whole = run(model(), teacher(), loader(), **OPTIONS)
    keep = {
        "checkpoint": tmp_path / "checkpoint",
        "checkpoint_seconds": -1.0,
        "cache": tmp_path / "cache",
    }
    with pytest.raises(InputError, match="StopError"):
        run(model(), Counting(stops=True), loader(), **OPTIONS, **keep)
    asks = Counting()
    resumed = run(model(), asks, loader(), **OPTIONS, **keep)
    assert sum(asks.asked) == 2 + 2 + 8 + 2 * 8, "four of six batches of the two views were known"
    assert same(resumed.model, whole.model) and resumed.history == whole.history


def segments(folder) -> list:
    return sorted(folder.glob("*/*.safetensors"))


def test_damaged_files_are_found_and_made_anew(tmp_path):
    whole = run(model(), teacher(), loader(), cache=tmp_path, **OPTIONS)
    (file,) = segments(tmp_path)
    sound = file.read_bytes()
    for damaged in (sound[:-5], sound[:-1] + bytes([sound[-1] ^ 1]), b"", b"nonsense" * 9):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="removed from the cache"):
            again = run(model(), teacher(), loader(), cache=tmp_path, **OPTIONS)
        assert same(again.model, whole.model)
        (file,) = segments(tmp_path)
        assert read_segment(file).keys.shape == (48, 2)


def test_another_teacher_never_finds_the_first_ones_outputs(tmp_path):
    for other in (teacher(), model(5, 12)):
        plain, cached = (
            run(model(), other, loader(), **OPTIONS, **c) for c in ({}, {"cache": tmp_path})
        )
        assert same(plain.model, cached.model)
    assert len(list(tmp_path.iterdir())) == 2
    both = [teacher(), model(5, 12)]
    for mixture in (
        {},
        {"weights": [2, 1]},
        {"ensemble": "confidence"},
        {"teacher_temperatures": [1, 2]},
    ):
        plain, cached = (
            run(model(), both, loader(), **OPTIONS, **mixture, **c)
            for c in ({}, {"cache": tmp_path})
        )
        assert same(plain.model, cached.model)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_teacher_in_lower_precision_is_recognized(tmp_path):
    """What is compared with the cache runs in the precision that the training runs in; a warning
    would be an error.
    """
    deep = nn.Sequential(
        *[layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 4)
    ).eval()
    for p in deep.parameters():  # sensitive to rounding
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    data = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    few = {"losses": {"mse": 1.0}, "epochs": 1, "precision": "bfloat16", "cache": tmp_path}
    first = run(nn.Linear(8, 4), deep, data, **few)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = deep(data[0]).float()
    assert (rounded - deep(data[0])).norm() > 0.02 * deep(data[0]).norm(), (
        "the precision makes no difference here"
    )
    again = run(nn.Linear(8, 4), deep, data, **few)
    assert (
        len(list(tmp_path.glob("*/*.safetensors"))) == 1
        and len(first.history) == len(again.history) == 1
    )


class Scaled(nn.Module):
    """Says something else by what nothing shows but its outputs: a list may be a mere log."""

    factor: ClassVar = [1.0]

    def __init__(self):
        super().__init__()
        self.net = teacher()

    def forward(self, x):
        return Scaled.factor[0] * self.net(x)


def test_changed_code_is_found(tmp_path, monkeypatch):
    run(model(), Scaled(), loader(), cache=tmp_path, **OPTIONS)
    monkeypatch.setattr(Scaled, "factor", [3.0])
    plain = run(model(), Scaled(), loader(), **OPTIONS)
    with pytest.warns(UserWarning, match="no longer says"):
        cached = run(model(), Scaled(), loader(), cache=tmp_path, **OPTIONS)
    assert same(plain.model, cached.model)


def test_a_cache_that_saves_nothing_says_so(tmp_path):
    with pytest.warns(UserWarning, match="set views="):
        run(model(), teacher(), loader(), cache=tmp_path, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model(), teacher(), [torch.randn(4, 1, 8, 8)], cache=tmp_path, epochs=2)


def test_half_precision_and_top_classes(tmp_path):
    whole = run(model(), teacher(), loader(), **OPTIONS).model
    half = run(
        model(), teacher(), loader(), cache=tmp_path, cache_precision="float16", **OPTIONS
    ).model
    x = loader(shuffle=False).dataset[0][0][None]
    torch.testing.assert_close(half(x), whole(x), atol=0.02, rtol=0.02)
    assert not same(half, whole)
    run(model(), teacher(), loader(), cache=tmp_path, cache_top=2, **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": 3}, "expected a folder"),
        ({"cache": __file__}, "which is a file"),
        ({"cache_top": 2}, "name its folder"),
        ({"cache_precision": "float16"}, "name its folder"),
        ({"cache": "c", "cache_precision": "int8"}, "known: float16, float32"),
        ({"cache": "c", "cache_top": 0}, "cache_top is 0; expected a positive integer"),
        ({"cache": "c", "cache_top": 2, "losses": {"mse": 1.0}}, "leave cache_top out"),
        ({"cache": "c", "features": {"2": "2"}}, "needs their layers"),
    ],
)
def test_errors(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        mb.distill(model(), teacher(), loader(), **options)


def test_two_processes_share_a_folder_and_small_files_make_one_answer(tmp_path, monkeypatch):
    module = sys.modules[
        Cache.__module__
    ]  # by its name one finds the function mirabelle.distillation.api
    monkeypatch.setattr(module, "LOOK_AGAIN", -1.0)
    monkeypatch.setattr(module, "BYTES", 20)
    asked = []

    def teach(batch, position):
        asked.append(batch.size)
        return batch.args[0][:, :2] * 10

    one, two = (
        Cache(tmp_path, teach, {"teacher": 1}, Encoding(), torch.device("cpu")) for _ in range(2)
    )
    x = torch.arange(12.0).reshape(6, 2)
    for rows in ([0, 1], [2, 2, 3], [4]):
        assert torch.equal(one(as_batch(x[rows])), x[rows] * 10)
    assert asked == [2, 3, 1]
    one.flush()
    assert len(list(one.folder.glob("*.safetensors"))) > 1
    assert torch.equal(two(as_batch(x[[5, 4, 2, 0]])), x[[5, 4, 2, 0]] * 10)
    assert asked == [2, 3, 1, 1], "only what the other had not asked"
    assert (two.hits, two.misses) == (3, 1)
    assert torch.equal(two(as_batch(x[[5, 0]])), x[[5, 0]] * 10) and len(asked) == 4


class LaterNaN(nn.Module):
    """Says NaN of one batch until told better."""

    sound: ClassVar = [False]

    def __init__(self):
        super().__init__()
        self.net = teacher()

    def forward(self, x):
        out = self.net(x)
        return out if self.sound[0] or float(x.mean()) < 1.5 else out * float("nan")


def brightening() -> list:
    return [
        torch.full((4, 1, 8, 8), float(i)) + 0.1 * torch.arange(4.0).reshape(4, 1, 1, 1)
        for i in range(3)
    ]


def test_a_teachers_nan_leaves_a_cache_that_serves(tmp_path, monkeypatch):
    options = {"losses": {"kd": 1.0}, "lr": 0.01, "precision": "float32"}
    with pytest.raises(MirabelleError, match=r"12 of 12 outputs of teacher 0 are NaN.*batch 2"):
        run(model(), LaterNaN(), brightening(), cache=tmp_path, **options)
    (file,) = segments(tmp_path)
    kept = read_segment(file)
    assert len(kept.keys) == len(kept.arrays["values"]) == 8, "the batches before it"
    monkeypatch.setattr(LaterNaN, "sound", [True])
    asks = run(model(), LaterNaN(), brightening(), cache=tmp_path, **options)
    plain = run(model(), LaterNaN(), brightening(), **options)
    assert same(asks.model, plain.model)


def test_keys_without_rows_are_a_damaged_file(tmp_path):
    """Such files were written, with a checksum that was right."""
    path = tmp_path / "x" / "a.safetensors"
    keys = np.arange(8, dtype=np.int64).reshape(4, 2)
    for arrays in (
        {"values": torch.zeros(3, 2)},
        {"values": torch.zeros(4, 3)},
        {"values": torch.full((4, 2), float("nan"))},
        {"rows": torch.zeros(4, 2)},
    ):
        write_segment(path, keys, arrays, Encoding(), (2,))
        with pytest.raises(InputError, match="not a whole file"):
            read_segment(path)
    write_segment(path, keys, {"values": torch.zeros(4, 2)}, Encoding(), (2,))
    assert len(read_segment(path).keys) == 4


def test_a_teacher_of_too_few_rows_is_refused(tmp_path):
    class Means(nn.Module):
        def forward(self, x):
            return x.flatten(1).mean(0, keepdim=True)

    cache = Cache(
        tmp_path, lambda b, p: Means()(b.args[0]), {"t": 1}, Encoding(), torch.device("cpu")
    )
    with pytest.raises(InputError, match="1 rows for 4 samples"):
        cache(as_batch(torch.randn(4, 3)))


class Thirds(nn.Module):
    """Differs from batch to batch by a constant of its class."""

    high = 1.0

    def __init__(self):
        super().__init__()
        self.net = teacher()

    def forward(self, x):
        out = self.net(x)
        return out * self.high if float(x.mean()) > 1.5 else out


def test_code_that_changed_only_for_later_batches_is_found(tmp_path, monkeypatch):
    options = {"losses": {"kd": 1.0}, "lr": 0.01, "precision": "float32", "cache": tmp_path}
    old = run(model(), Thirds(), brightening(), **options)

    def forward(self, x):
        out = self.net(x)
        return out * 5.0 if float(x.mean()) > 1.5 else out

    monkeypatch.setattr(Thirds, "forward", forward)
    new = run(model(), Thirds(), brightening(), **options)
    assert not same(new.model, old.model)
    plain = run(model(), Thirds(), brightening(), **{**options, "cache": None})
    assert same(new.model, plain.model)
