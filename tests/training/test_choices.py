"""What training decides by itself: no network is returned that is worse on data held back."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.base.fingerprints import fingerprints
from mirabelle.distillation.api import run
from mirabelle.training.api import LabelsObjective, train
from mirabelle.training.choices import best_rate, choose_accumulation, choose_statistics
from mirabelle.training.holdout import split
from mirabelle.training.judge import diverges
from tests.tiny import Noisy, model, teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Six patterns under noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 6, (count,), generator=g)
    patterns = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    return 0.7 * patterns[y] + noise * torch.randn(count, 3, 8, 8, generator=g), y


def in_batches(x: torch.Tensor, size: int, y: torch.Tensor | None = None) -> list:
    return [
        x[i : i + size] if y is None else (x[i : i + size], y[i : i + size])
        for i in range(0, len(x), size)
    ]


def convnet(width: int = 12) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 6),
        )


@pytest.fixture(scope="module")
def original() -> nn.Module:
    x, y = images(768, 0)
    return mb.fit(convnet(), in_batches(x, 64, y), epochs=2, lr=3e-3)


@pytest.fixture(scope="module")
def pruned(original) -> nn.Module:
    x, _ = images(256, 1)
    return mb.prune(original, x[:2], macs=0.5, align=1, criterion="random", data=in_batches(x, 64))


def agreement(a: nn.Module, b: nn.Module) -> float:
    x, _ = images(1500, 5)
    with torch.no_grad():
        return float((a(x).argmax(1) == b(x).argmax(1)).float().mean())


@pytest.mark.filterwarnings("ignore:training made the network worse")
@pytest.mark.parametrize("size", [4, 16, 32])
def test_distillation_from_few_unlabeled_images_destroys_nothing(original, pruned, size):
    x, _ = images(64, 7)
    found = run(pruned, original, in_batches(x, size))
    assert agreement(found.model, original) >= agreement(pruned, original) - 0.01
    assert found.choices["held_out"] >= 4
    assert found.choices["freeze"] and "64" not in found.choices["kept"]
    assert torch.equal(found.model[1].running_mean, pruned[1].running_mean)
    assert found.choices["after"] <= found.choices["before"]


def test_the_old_default_destroys_what_the_new_one_keeps(original, pruned):
    """The rate of before, and statistics that follow batches of four."""
    x, _ = images(64, 7)
    data = in_batches(x, 4)
    old = mb.distill(pruned, original, data, losses={"dist": 1.0}, lr=1e-2)
    before = agreement(pruned, original)
    assert agreement(old, original) < before - 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert agreement(mb.distill(pruned, original, data), original) >= before - 0.01


def test_the_better_network_is_kept_and_said(original):
    """All labels are wrong but those of the last two of each batch, which are held back."""
    x, y = images(96, 11)
    data = in_batches(x, 16, y)
    data = [(a, torch.cat([(b[:14] + 1) % 6, b[14:]])) for a, b in data]
    objective = LabelsObjective("cross_entropy")
    with pytest.warns(UserWarning, match=r"worse on data that it did not see.*returned as it was"):
        found = train(original, data, objective, holdout=0.1, lr=3e-3)
    assert found.choices["kept"] == "the network as it was" and found.choices["held_out"] == 12
    assert found.choices["after"] == found.choices["before"] < found.history[-1]["held_out"]
    for a, b in zip(found.model.state_dict().values(), original.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_it_stops_where_it_diverges(original):
    x, y = images(256, 13)
    with pytest.warns(UserWarning, match="training diverges|not finite"):
        found = train(
            original,
            in_batches(x, 8, y),
            LabelsObjective("cross_entropy"),
            epochs=30,
            lr=0.5,
            schedule="constant",
            holdout=0.1,
        )
    assert len(found.history) < 30 and "stopped" in found.choices
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), original.parameters()))


def test_divergence_by_hand():
    assert not diverges(1.0, [1.0, 2.0, 2.0])
    assert diverges(1.0, [1.0, 2.0, 2.0, 2.1])
    assert not diverges(1.0, [1.0, 3.0, 2.0, 1.8]), "it comes back"
    assert not diverges(1.0, [1.0, 2.0, 0.9, 2.0])
    assert diverges(1.0, [1.0, float("nan")])


def test_a_rate_by_hand():
    """The lowest of medians of three, as one lucky step is no evidence."""
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    assert best_rate(rates, [1.0, 0.6, 0.5, 9.0], 1.0, 2.0)[0] == pytest.approx(1e-3 / 2)
    assert best_rate(rates, [1.0, 0.1, 0.9, 0.8], 1.0, 1.0)[0] == pytest.approx(1e-2)
    assert best_rate(rates, [0.9, 0.8, 0.3, 0.2], 1.0, 1.0)[0] == pytest.approx(1e-2)
    assert best_rate(rates, [1.1, 1.2, 5.0], 1.0, 1.0)[0] == 1e-4


def test_a_fresh_student_gets_a_rate_that_learns(original):
    """A thousandth, the usual rate, leaves it behind."""
    x, _ = images(1024, 21)
    data = in_batches(x, 32)
    usual = mb.distill(convnet(4), original, data, losses={"kd": 1.0}, lr=1e-3)
    found = run(convnet(4), original, data, losses={"kd": 1.0})
    assert found.choices["lr"] > 2e-3 and not found.choices["freeze"]
    assert agreement(found.model, original) > agreement(usual, original)


def test_the_trial_leaves_network_data_and_generators_alone(original):
    x, y = images(96, 31)
    before = [t.clone() for t in original.state_dict().values()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    data = in_batches(x, 16, y)
    mb.fit(original, data, "cross_entropy", batchnorm="train")
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(before, original.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(data[0][0], x[:16])


def test_what_is_given_is_not_chosen(original):
    x, y = images(96, 31)
    found = train(
        original,
        in_batches(x, 16, y),
        LabelsObjective("cross_entropy"),
        accumulate=3,
        batchnorm="train",
        holdout=0.0,
    )
    assert found.choices["accumulate"] == 3 and not found.choices["freeze"]
    assert found.choices["held_out"] == 0 and found.choices["lr"] == 1e-3
    given = train(original, in_batches(x, 16, y), LabelsObjective("cross_entropy"), lr=0.01)
    assert given.choices["held_out"] == 0 and given.choices["why"] == {}


def test_accumulation_and_statistics_by_hand():
    assert choose_accumulation(4, 100)[0] == 4
    assert choose_accumulation(1, 100)[0] == 10, "ten steps are left"
    assert choose_accumulation(4, 9)[0] == 1
    assert choose_accumulation(32, 100)[0] == 1
    fresh, learned = convnet(), convnet()
    for norm in (learned[1], learned[4]):
        norm.running_mean.fill_(0.1)
    assert not choose_statistics(fresh, 64, 4)[0]
    assert choose_statistics(learned, 64, 32)[0]
    assert choose_statistics(learned, 10_000, 4)[0]
    assert not choose_statistics(learned, 10_000, 32)[0]
    assert not choose_statistics(nn.Linear(2, 2), 64, 4)[0]


def test_resumed_equals_uninterrupted_where_all_is_chosen(tmp_path, original):
    class StopError(BaseException):
        pass

    x, y = images(160, 41)
    calls, stop = 0, [-1]

    def loss(output, target):
        nonlocal calls
        calls += 1
        if calls == stop[0]:
            raise StopError
        return nn.functional.cross_entropy(output, target)

    def trained(**options):
        objective = LabelsObjective(loss)
        return train(model_, in_batches(x, 16, y), objective, epochs=3, **options)

    model_ = convnet(4)
    whole = trained()
    calls, stop[0] = 0, calls - 12
    keep = {"checkpoint": tmp_path, "checkpoint_seconds": -1.0}
    with pytest.raises(StopError):
        trained(**keep)
    stop[0] = -1
    resumed = trained(**keep)
    assert resumed.history == whole.history and resumed.choices == whole.choices
    for a, b in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


# --- what is held back


class Endless(IterableDataset):
    def __iter__(self):
        x, y = images(64, 3)
        return iter(zip(x, y))


def keys(data) -> set:
    return {tuple(k) for item in data for k in fingerprints(as_batch(item)).tolist()}


class Shuffling:
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter([self.batches[i] for i in torch.randperm(len(self.batches))])


X, Y = images(64, 3)
LOADERS = {
    "many batches": lambda: in_batches(X, 4, Y),
    "few batches": lambda: in_batches(X, 32, Y),
    "unlabeled": lambda: in_batches(X, 16),
    "shuffled": lambda: DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True),
    "stream": lambda: DataLoader(Endless(), batch_size=8),
    "own order": lambda: Shuffling(in_batches(X, 8, Y)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_held_back_is_never_trained_on(kind):
    whole = keys(LOADERS[kind]())
    loader, held = split(LOADERS[kind](), 0.1, 0)
    back = keys(held)
    assert 4 <= len(back) <= 16 and len(whole) == 64
    lengths = set()
    for _ in range(3):
        batches = list(loader)
        lengths.add(len(batches))
        seen = keys(batches)
        assert not seen & back
        assert len(seen) >= 64 - len(back)
    assert len(lengths) == 1, "all epochs are as long"


@pytest.mark.parametrize(
    "loader",
    [in_batches(X[:12], 4, Y[:12]), [(X, Y)], DataLoader(TensorDataset(X[:10], Y[:10]))],
    ids=["few samples", "one batch", "few indices"],
)
def test_nothing_is_held_back_of_too_few(loader):
    same, held = split(loader, 0.1, 0)
    assert same is loader and held == []


def test_augmented_samples_are_held_back_by_index():
    loader, held = split(DataLoader(Noisy(40), batch_size=8, shuffle=True, drop_last=True), 0.1, 0)
    indices = [i for _ in range(2) for i in loader.sampler]
    assert len(set(indices)) == 36 and len(loader) == 4 and sum(b.size for b in held) == 4


def test_holdout_and_validation_are_alternatives():
    with pytest.raises(InputError, match="holdout and validation both score"):
        mb.fit(model(), in_batches(X, 8, Y), holdout=0.1, validation=in_batches(X, 8, Y))


# --- losses


def classes(count: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, count))


class Unit(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = classes(width, 2)

    def forward(self, x):
        return nn.functional.normalize(self.net(x), dim=1)


class Other(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, width))

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize(
    ("student", "taught", "losses"),
    [
        (classes(6), classes(6, 1), {"dist": 1.0}),
        (Other(6), classes(6), {"standardized_kd": 1.0}),
        (Other(3), classes(3), {"kd": 1.0}),
        (Other(1), classes(1), {"mse": 1.0}),
        (Other(6), nn.Sequential(classes(6), nn.Softmax(1)), {"mse": 1.0}),
        (Other(6), Unit(6), {"cosine": 1.0, "similarity": 100.0}),
        (Other(4), Unit(6), {"rkd_distance": 1.0, "rkd_angle": 2.0}),
        (Other(6), [classes(6), classes(6, 1)], {"dist": 1.0}),
    ],
)
def test_losses_that_suit_what_is_taught(student, taught, losses):
    x = [torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = run(student, taught, x, lr=1e-3)
    assert found.choices["losses"] == losses and set(found.history[0]) == set(losses)
    given = run(student, taught, x, lr=1e-3, losses={"rkd_distance": 1.0})
    assert given.choices["losses"] == {"rkd_distance": 1.0}


def test_numbers_as_targets_are_no_classes():
    x = torch.randn(8, 1, 8, 8)
    found = run(Other(6), classes(6), [(x, torch.randn(8, 6))] * 2, lr=1e-3)
    assert found.choices["losses"] == {"mse": 1.0}


def test_features_add_to_the_loss_that_is_chosen():
    x = torch.randn(8, 1, 8, 8)
    found = run(model(), teacher(), [x], lr=1e-3, features={"2": "2"})
    assert found.choices["losses"] == {"kd": 1.0, "features": 1.0}
