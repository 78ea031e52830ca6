"""Teachers of every kind: networks, ONNX files, saved outputs; and how several become one."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.distillation import ENSEMBLES, default_ensemble, save_outputs
from mirabelle.distillation.api import run
from mirabelle.distillation.teachers import Teachers
from mirabelle.distillation.views import Views
from tests.tiny import Noisy, model, teacher

CPU = torch.device("cpu")


class Constant(nn.Module):
    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def images(count: int = 3) -> list:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(6, 1, 8, 8, generator=g) for _ in range(count)]


def odds(p: float) -> float:
    return math.log(p / (1 - p))


HALF = torch.tensor([0.5, 0.5])


def test_mixtures_by_hand():
    a, b = torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.6, 0.4]]).log()
    torch.testing.assert_close(
        ENSEMBLES["probabilities"]([a, b], HALF).exp(), torch.tensor([[0.4, 0.6]])
    )
    torch.testing.assert_close(
        ENSEMBLES["probabilities"]([a, b], torch.tensor([0.75, 0.25])).exp(),
        torch.tensor([[0.3, 0.7]]),
    )
    torch.testing.assert_close(
        ENSEMBLES["logits"]([a, b], torch.tensor([0.75, 0.25])), 0.75 * a + 0.25 * b
    )
    yes = [torch.tensor([[odds(0.2)]]), torch.tensor([[odds(0.6)]])]
    assert ENSEMBLES["binary"](yes, HALF).item() == pytest.approx(odds(0.4), rel=1e-5)
    # Entropies H give exp(H): 2 for (1/2, 1/2), 1 for a sure teacher. Weights 1 - 2/3 and 1 - 1/3.
    unsure, sure = (
        torch.tensor([[0.5, 0.5]]).log(),
        torch.tensor([[1 - 1e-9, 1e-9]], dtype=torch.float64).log(),
    )
    torch.testing.assert_close(
        ENSEMBLES["confidence"]([unsure, sure], HALF).exp()[0, 0].item(),
        0.5 / 3 + 2 / 3,
        rtol=1e-4,
        atol=0,
    )


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_mixture_of_equals_is_that_equal(name):
    z = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = ENSEMBLES[name]([z, z, z], torch.tensor([0.5, 0.3, 0.2]))
    assert found.shape == z.shape
    torch.testing.assert_close(found.softmax(1), z.softmax(1))
    assert torch.isfinite(ENSEMBLES[name]([z, 2 * z], torch.tensor([1.0, 0.0]))).all(), (
        "a weight of 0"
    )


def test_temperatures_weights_and_kind():
    two = [Constant([0.2, 0.8]), Constant([0.6, 0.4])]
    taught = Teachers(two, CPU, temperatures=[0.5, 1.0])(as_batch(torch.zeros(3, 1)))
    first = 0.04 / 0.68  # squared probabilities, at temperature 1/2
    torch.testing.assert_close(taught.softmax(1)[:, 0], torch.full((3,), (first + 0.6) / 2))
    assert (
        default_ensemble(["dist", "mse"]) == "probabilities"
        and default_ensemble(["binary_kd"]) == "binary"
        and default_ensemble(["cosine"]) == "logits"
    )


def test_random_is_one_teacher_for_each_batch_drawn_by_position_and_weights():
    two = Teachers(
        [Constant([0.2, 0.8]), Constant([0.6, 0.4])], CPU, ensemble="random", weights=[3, 1]
    )
    x = as_batch(torch.zeros(3, 1))
    drawn = [two(x, (0, i)).softmax(1)[0, 0].item() for i in range(400)]
    assert {round(d, 3) for d in drawn} == {0.2, 0.6}
    assert sum(d < 0.4 for d in drawn) / 400 == pytest.approx(0.75, abs=0.08)
    torch.manual_seed(7)
    assert [two(x, (0, i)).softmax(1)[0, 0].item() for i in range(400)] == drawn


def test_a_teacher_is_in_memory_once_and_left_alone():
    net = teacher().train()
    held = Teachers([net, net], CPU)
    mine = [p.data_ptr() for p in net.parameters()]
    for copied in held.networks:
        assert [p.data_ptr() for p in copied.parameters()] == mine
        assert not copied.training and not any(p.requires_grad for p in copied.parameters())
        assert all(
            a.data_ptr() != b.data_ptr()
            for a, b in zip(copied.buffers(), net.buffers(), strict=True)
        )
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert held(as_batch(images(1)[0])).grad_fn is None


def linear_file(path, rows) -> np.ndarray:
    """An ONNX file that multiplies (rows, 4) by a matrix (4, 3)."""
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 3], matrix.tobytes(), raw=True)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path
    )
    return matrix


@pytest.mark.parametrize("rows", ["n", 1, 2])
def test_onnx_file(tmp_path, rows):
    matrix = linear_file(tmp_path / "t.onnx", rows)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        Teachers(tmp_path / "t.onnx", CPU)(as_batch(x)), x @ torch.from_numpy(matrix)
    )
    student = mb.distill(
        nn.Linear(4, 3),
        str(tmp_path / "t.onnx"),
        [x] * 4,
        losses={"mse": 1.0},
        epochs=40,
        lr=0.1,
        precision="float32",
    )
    torch.testing.assert_close(student(x), x @ torch.from_numpy(matrix), atol=0.1, rtol=0.1)
    mixed = Teachers([tmp_path / "t.onnx", nn.Linear(4, 3)], CPU, ensemble="logits")
    assert mixed(as_batch(x)).shape == (5, 3)


def test_saved_outputs_are_the_teacher(tmp_path):
    data = images()
    path = save_outputs(tmp_path / "t.safetensors", data, teacher())
    options = {"losses": {"kd": 1.0}, "epochs": 2, "lr": 0.02, "precision": "float32"}
    a, b = run(model(), teacher(), data, **options), run(model(), path, data, **options)
    torch.testing.assert_close(
        Teachers(path, CPU)(as_batch(data[1])),
        Teachers(teacher(), CPU)(as_batch(data[1])),
        rtol=1e-5,
        atol=1e-6,
    )
    for x, y in zip(a.history, b.history, strict=True):
        assert x["kd"] == pytest.approx(y["kd"], rel=1e-3)
    with pytest.raises(InputError, match=r"no outputs for 6 of 6 inputs.*augmentation"):
        mb.distill(model(), path, [x + 1 for x in data])


def test_saved_outputs_from_elsewhere(tmp_path):
    data = [torch.arange(8.0).reshape(4, 2), torch.arange(8.0, 12.0).reshape(2, 2)]
    outputs = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    path = save_outputs(tmp_path / "t.safetensors", data, outputs)
    # In any order, and in other batches.
    shuffled = torch.cat(data)[[5, 0, 3]]
    assert Teachers(path, CPU)(as_batch(shuffled)).tolist() == outputs[[5, 0, 3]].tolist()
    for wrong in (outputs[:5], np.zeros((7, 2), np.float32)):
        with pytest.raises(InputError, match=f"{len(wrong)} rows"):
            save_outputs(path, data, wrong)


def test_saved_outputs_of_augmented_views(tmp_path):
    loader = DataLoader(Noisy(12), batch_size=4, shuffle=True)
    path = save_outputs(tmp_path / "t.safetensors", loader, teacher(), seed=3, views=2)
    assert Teachers(path, CPU).members[0].segment.keys.shape == (24, 2)
    mb.distill(model(), path, loader, epochs=4, seed=3, views=2)
    with pytest.raises(InputError, match="no outputs for"):
        mb.distill(model(), path, loader, epochs=4, seed=4, views=2)


@pytest.mark.parametrize("damage", ["shorter", "flipped", "empty", "other", "gone"])
def test_damaged_files(tmp_path, damage):
    path = save_outputs(tmp_path / "t.safetensors", images(), teacher())
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
    path.write_bytes(
        {"shorter": content[:-9], "empty": b"", "other": b"x" * 500}.get(damage, bytes(content))
    )
    if damage == "gone":
        path.unlink()
    with pytest.raises(InputError, match="t.safetensors"):
        Teachers(path, CPU)


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ([], {}, "at least one teacher"),
        (3, {}, "teacher is a int"),
        ([3], {}, "teacher 0 is a int"),
        ("net.pt", {}, "'net.pt'; expected"),
        ("gone.onnx", {}, "not there"),
        ([model(), model()], {"ensemble": "probabilitys"}, "did you mean 'probabilities'"),
        ([model(), model()], {"weights": [1]}, "list of 2 numbers"),
        ([model(), model()], {"weights": [0, 0]}, "one of them positive"),
        ([model(), model()], {"weights": [1, -1]}, "at least 0"),
        ([model(), model()], {"teacher_temperatures": [1, 0]}, "positive numbers"),
    ],
)
def test_errors(given, options, words):
    with pytest.raises(InputError, match=words):
        mb.distill(model(), given, images(), **options)


def test_views_come_back_and_leave_the_students_generators_alone():
    loader = Views(DataLoader(Noisy(12), batch_size=4, shuffle=True), seed=1, views=2)
    seen = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        batches = []
        for x, _ in loader:
            torch.rand(epoch)  # a student that draws something else in every epoch
            batches.append(x)
            assert loader.position == (epoch % 2, len(batches) - 1)
        seen.append(torch.cat(batches))
    assert (
        torch.equal(seen[0], seen[2])
        and torch.equal(seen[1], seen[3])
        and not torch.equal(seen[0], seen[1])
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = [torch.rand(1) for _ in loader]
    assert torch.equal(torch.cat(drawn), expected)


def test_endless_data_with_a_number_of_steps():
    class Endless:
        def __iter__(self):
            while True:
                yield torch.randn(6, 1, 8, 8)

    trained = run(model(), teacher(), Endless(), steps=5, accumulate=2, losses={"mse": 1.0})
    assert len(trained.history) == 1
    for wrong, words in ((iter(images()), "iterator"), (3, "expected a loader")):
        with pytest.raises(InputError, match=words):
            mb.distill(model(), teacher(), wrong)
    for views in (0, 1.5, True):
        with pytest.raises(InputError, match="views is"):
            mb.distill(model(), teacher(), images(), views=views)


def test_saved_outputs_of_augmented_data_without_a_rate(tmp_path):
    """Nothing is held back: other samples would draw another augmentation than was saved."""
    data = DataLoader(Noisy(32), batch_size=8, shuffle=True)
    path = save_outputs(tmp_path / "t.safetensors", data, teacher(), views=2)
    found = run(model(), path, data, views=2, epochs=2)
    assert found.choices["held_out"] == 0 and len(found.history) == 2
