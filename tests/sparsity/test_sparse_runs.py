"""Where sparse networks run: break-even curves, the choice of forms, recipes and the
command line.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import yaml
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError, RecipeError
from mirabelle.cli import main
from mirabelle.measurement.breakeven import Limits, crossing, zeroed
from mirabelle.pipeline import measuring, recipe, run
from mirabelle.report.schema import Report, unknown
from mirabelle.runtimes import RUNTIMES, mnn, sparse, sparse_forms
from tests.sparsity.test_sparse_store import still_zero, zeros

try:
    RUNTIMES["mnn"].version()
except ImportError as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "LATENCY_SECONDS", 0.1)
    monkeypatch.setattr(sparse, "SECONDS", 0.1)
    monkeypatch.setattr(sparse, "ROUNDS", 2)


def test_where_curves_cross_by_hand():
    at = [0.7, 0.8, 0.9]
    assert crossing(at, [0.5, 0.9, 1.3]) == pytest.approx(
        0.825
    )  # a quarter of the way from 0.9 to 1.3
    assert crossing(at, [1.2, 0.9, 1.1]) == pytest.approx(0.85)  # for the last time
    assert crossing(at, [1.1, 1.2, 1.3]) == 0.7
    assert crossing(at, [1.1, 1.2, 1.0]) is None
    assert crossing(at, [None, None, 1.5]) == pytest.approx(0.8)  # dense ran


def test_the_limit_of_a_machine_by_hand():
    # 60 million products at 30 billion a second take 2 ms; 40 MB at 10 GB a second take 4.
    assert Limits(1, 30.0, 10.0).milliseconds(60e6, 40e6) == 4.0
    assert Limits(1, 30.0, 40.0).milliseconds(60e6, 40e6) == 2.0


@pytest.mark.parametrize("block", [1, 4])
def test_weights_are_zeroed_to_a_share(tmp_path, block):
    import onnx

    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 10)).eval()
    model = onnx.load(mb.export(layer, tmp_path, inputs=torch.randn(1, 3, 4, 4)).path)
    for before, after in zip(
        sparse_forms.weights(model), sparse_forms.weights(zeroed(model, 0.75, block)), strict=True
    ):
        units = np.add.reduceat(after.rows != 0, range(0, len(after.rows), block), axis=0) > 0
        assert (~units).sum() == round(0.75 * units.size) and (before.rows != 0).all()
        assert (after.rows[after.rows != 0] == before.rows[after.rows != 0]).all()


@pytest.mark.slow
def test_break_even(tmp_path):
    net, x = (
        nn.Sequential(
            nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)
        ).eval(),
        torch.randn(1, 8, 6, 6),
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = mb.measure(net, inputs=x, runs=3, break_even=(0.95, 0.8)).break_even
    assert found is not None and found.sparsities == [0.8, 0.95]
    assert found.layers == {"3x3 convolution": 1, "1x1 convolution": 1} and set(found.speedups) == {
        *found.layers,
        "whole network",
    }
    assert all(
        len(v) == 2 and all(s is None or s > 0 for s in v)
        for forms in found.speedups.values()
        for v in forms.values()
    )
    assert (
        {"onnxruntime", "mnn"} <= set(found.dense)
        and found.limits.gmacs > 0
        and found.least["1x1"][0] > found.least["1x1"][1] > 0
    )
    assert (
        "break-even" in str(found)
        and json.loads(json.dumps(found.to_dict()))["break_even"].keys() == found.speedups.keys()
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("asked", [0.9, (), (0.9, 1.0), ("0.9",), (True,)])
def test_break_even_of_nothing(asked):
    with pytest.raises(InputError, match="expected True, or shares of zeros"):
        mb.measure(nn.Linear(4, 4), inputs=torch.zeros(1, 4), break_even=asked)


def test_break_even_needs_layers_and_weights(tmp_path):
    with pytest.raises(InputError, match="no layer that could be sparse"):
        mb.measure(
            nn.Conv2d(4, 4, 1, groups=4), inputs=torch.zeros(1, 4, 2, 2), runs=2, break_even=True
        )
    path = mb.export(nn.Linear(4, 4), tmp_path, runtime="mnn", inputs=torch.zeros(1, 4)).path
    with pytest.raises(InputError, match=r"is no \.onnx file"):
        mb.measure(path, inputs=np.zeros((1, 4), "float32"), break_even=True)


def test_what_was_chosen_is_the_fastest_and_can_be_read_again(tmp_path):
    net = mb.sparsify(
        nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval(),
        sparsity=0.98,
        block=(4, 1),
    )
    x = torch.randn(1, 512)
    artifact = mb.export(net, tmp_path, runtime="sparse", inputs=x)
    found = sparse.choice(artifact.path)
    best = min(found.milliseconds, key=found.milliseconds.__getitem__)
    assert found.runtime == ("mnn" if best == "sparse" else best) and found.sparse == (
        best == "sparse"
    )
    assert [(layer.kind, layer.shape) for layer in found.layers] == [("linear", (512, 512))] * 2
    assert all(
        layer.form in ("dense", "1x1", "4x1") and set(layer.milliseconds) == {"dense", "1x1", "4x1"}
        for layer in found.layers
    )
    with torch.no_grad():
        np.testing.assert_allclose(artifact(x.numpy()), net(x).numpy(), atol=1e-5)
    measured = mb.measure(artifact, inputs=x.numpy(), runs=3)
    assert measured.forms == found and "% zeros" in str(measured)
    content = json.loads(artifact.path.read_text())
    for change, words in [
        ({"format": 9}, "format 9"),
        ({"file": "../x"}, "sparse"),
        ({"sha256": "0"}, "damaged or replaced"),
    ]:
        artifact.path.write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=words):
            mb.runtimes.load(artifact.path, "sparse")  # type: ignore[attr-defined]


def test_a_form_has_to_gain_more_than_noise():
    assert sparse_forms.fastest({"dense": 1.0, "1x1": 0.99, "4x1": 1.2}) == "dense"
    assert sparse_forms.fastest({"dense": 1.0, "1x1": 0.9, "4x1": 0.8}) == "4x1"


def test_outputs_that_differ_are_no_candidate(tmp_path, monkeypatch):
    """A wrong kernel must not be chosen for its speed."""
    real = mnn.RUNTIME.open

    def wrong(path, threads):
        session = real(path, threads)
        return type(session)(
            session.inputs, session.outputs, lambda arrays: [1.001 * a for a in session.run(arrays)]
        )

    monkeypatch.setitem(sparse.DENSE, "mnn", replace(mnn.RUNTIME, open=wrong))
    with pytest.raises(InputError, match="gives other outputs on mnn than on onnxruntime"):
        mb.export(nn.Linear(8, 8), tmp_path, runtime="sparse", inputs=torch.randn(1, 8))


@pytest.mark.slow
def test_zeros_survive_learned_rounding():
    network = mb.sparsify(tiny.model(), sparsity=0.7)
    before = zeros(network)
    q = mb.quantize(network, tiny.data()[1], samples=32, repair=["learned-rounding"])
    assert still_zero(q, before)


# --- recipes and the command line
# --------------------------------------------------------------------------------------------------


def written(folder, steps_):
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"version": 1, "model": "tests.tiny:model", "data": "tests.tiny:data", "steps": steps_},
            sort_keys=False,
        )
    )
    return path


@pytest.mark.slow
def test_a_recipe_with_sparsity(tmp_path):
    path = written(
        tmp_path,
        [
            {"prune": {"macs": 0.8, "align": 4, "samples": 16}},
            {
                "sparsify": {
                    "sparsity": 0.5,
                    "criterion": "obs",
                    "samples": 16,
                    "repair": "least-squares",
                }
            },
            {"fit": {"epochs": 1, "sparsify": {"sparsity": 0.8, "cuts": 2}}},
            {"export": {"runtimes": ["onnxruntime", "sparse"]}},
        ],
    )
    report = run(path, folder=tmp_path / "run").report
    assert unknown(Report, report) == []
    assert [s["name"] for s in report["stages"]] and report["stages"][-1]["runtimes"]["sparse"][
        "speedup"
    ]
    share = [sum(r[k] for r in report["sparsity"]["layers"]) for k in ("zeros", "size")]
    assert share[0] / share[1] == pytest.approx(0.8, abs=0.02)
    assert report["forms"]["layers"] and (tmp_path / "run" / "report.html").read_text().count(
        "Sparse layers"
    )
    assert run(path, folder=tmp_path / "run", resume=True).report["sparsity"] == report["sparsity"]


@pytest.mark.parametrize(
    ("steps_", "words"),
    [
        ([{"sparsify": {"sparsity": 0.5}}, {"prune": {"macs": 0.5}}], "prune first, then sparsify"),
        (
            [{"fit": {"sparsify": {"sparsity": 0.5}}}, {"prune": {"macs": 0.5}}],
            "prune first, then sparsify",
        ),
        ([{"quantize": {}}, {"sparsify": {"sparsity": 0.5}}], "sparsify first, then quantize"),
        ([{"sparsify": {}}], "it needs sparsity"),
        ([{"sparsify": {"sparsity": 0.5, "criterion": "wunda"}}], "did you mean 'wanda'"),
        ([{"sparsify": {"sparsity": 0.5, "allocation": "knapsack"}}], "allocation: got 'knapsack'"),
        ([{"sparsify": {"sparsity": 0.5, "block": [1, 4]}}], "block: got"),
        ([{"fit": {"sparsify": {"sparsity": 0.5, "cut": 3}}}], "did you mean 'cuts'"),
        (
            [
                {
                    "prune": {
                        "macs": 0.5,
                        "rounds": 2,
                        "train": {"epochs": 1, "sparsify": {"sparsity": 0.5}},
                    }
                }
            ],
            "unknown option 'sparsify'",
        ),
        (
            [{"quantize": {}}, {"export": {"runtimes": ["sparse"]}}],
            "does not run quantized networks",
        ),
    ],
)
def test_orders_and_options_that_cannot_be(steps_, words):
    with pytest.raises(RecipeError, match=words):
        recipe.parse(
            {"version": 1, "model": "tests.tiny:model", "data": "tests.tiny:data", "steps": steps_}
        )


@pytest.mark.slow
def test_measure_on_the_command_line(tmp_path, capsys):
    assert (
        main(
            [
                "measure",
                "tests.tiny:model",
                "--input",
                "1x1x8x8",
                "--break-even",
                "--html",
                str(tmp_path / "page.html"),
            ]
        )
        == 0
    )
    assert (
        "break-even" in capsys.readouterr().out
        and "break" in (tmp_path / "page.html").read_text().lower()
    )
    assert main(["measure", "tests.tiny:model", "--input", "1x1x8x8", "--html", "x.html"]) != 0
