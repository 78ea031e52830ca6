"""Recipes that are wrong are refused as they are read, with the place and the remedy."""

import pytest
import yaml

from mirabelle.base.errors import RecipeError
from mirabelle.pipeline import schema
from mirabelle.pipeline.declarations import STEPS
from mirabelle.pipeline.recipe import load_recipe

FULL = [{"prune": {"macs": 0.5}}, "distill", "quantize", "export", "verify"]


def written(tmp_path, **changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "model": "tests.tiny:model",
                "data": "tests.tiny:data",
                "steps": FULL,
                **changes,
            }
        )
    )
    return path


def test_whole(tmp_path):
    recipe = load_recipe(written(tmp_path, limits={"accuracy_drop": 0.005}, seed=3))
    assert [s.name for s in recipe.steps] == ["prune", "distill", "quantize", "export", "verify"]
    assert recipe.limits.items() == [("accuracy_drop", 0.005)] and recipe.to_dict()["seed"] == 3


@pytest.mark.parametrize("key", ["data", "step", "load", "limits"])
def test_a_key_without_a_value_is_one_left_out(tmp_path, key):
    """As `data:` with nothing behind it."""
    steps = [{"prune": {"macs": 0.5}}]
    found = load_recipe(written(tmp_path, **{"data": None, "steps": steps, key: None}))
    assert found.to_dict() == load_recipe(written(tmp_path, data=None, steps=steps)).to_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modell": 1}, "did you mean 'model'"),
        ({"version": 2}, "version is 2"),
        ({"version": True}, "version is True"),
        ({"model": 3}, "module:callable"),
        ({"model": "net.tflite"}, "expected module:callable"),
        ({"model": "timm:"}, "a name behind timm:"),
        ({"data": {"size": 224}}, "'folder'"),
        ({"data": {"folder": "p", "sise": 224}}, "did you mean 'size'"),
        ({"data": {"folder": "p", "size": [1, 2, 3]}}, "height and width"),
        ({"data": {"folder": "p", "layout": "nhcw"}}, "did you mean 'nhwc' or 'nchw'"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**40}, "seed"),
        ({"seed": True}, "seed"),
        ({"metric": "top2"}, "did you mean"),
        ({"metric": ["top1"]}, "metric"),
        ({"loss": "mes"}, "did you mean 'mse'"),
        ({"steps": []}, "at least one"),
        ({"steps": {"prune": {}}}, "list"),
        ({"steps": [{"prun": {}}]}, "did you mean 'prune'"),
        ({"steps": [{"prune": 3}]}, "expected a mapping"),
        ({"steps": [{"prune": {"macs": 0.5}, "fit": {}}]}, "expected one name"),
        ({"steps": ["prune"]}, "exactly one budget"),
        ({"steps": [{"prune": {"macs": 2}}]}, "fraction"),
        ({"steps": [{"prune": {"macs": "0.5"}}]}, "fraction"),
        ({"steps": [{"prune": {"mac": 0.5}}]}, "did you mean 'macs'"),
        ({"steps": [{"prune": {"macs": 0.5, "criterion": "tailor"}}]}, "did you mean 'taylor"),
        ({"steps": [{"prune": {"macs": 0.5, "criterion": ["l1"]}}]}, "criterion"),
        ({"steps": [{"prune": {"macs": 0.5, "align": 1.5}}]}, "integer"),
        ({"steps": [{"prune": {"macs": 0.5, "align": "8"}}]}, "positive integer"),
        ({"steps": [{"prune": {"macs": 0.5, "keep": 3}}]}, "list of modules"),
        ({"steps": [{"prune": {"macs": 0.5, "rounds": 2.5}}]}, "integer"),
        ({"steps": [{"prune": {"macs": 0.5, "train": 3}}]}, "expected options of training"),
        ({"steps": [{"prune": {"macs": 0.5, "train": {"epoch": 1}}}]}, "did you mean 'epochs'"),
        ({"steps": [{"prune": {"macs": 0.5, "train": {"lr": -1}}}]}, "positive number"),
        ({"steps": [{"prune": {"macs": 0.5, "normalize": "means"}}]}, "did you mean 'mean'"),
        ({"steps": [{"fit": {"epochs": 0}}]}, "positive"),
        ({"steps": [{"fit": {"epochs": None}}]}, "leave the key out for its default, 1"),
        ({"steps": [{"fit": {"weight_decay": "x"}}]}, "number of at least 0"),
        ({"steps": [{"fit": {"device": "gpu"}}]}, "device"),
        ({"steps": [{"distill": {"losses": {"kdd": 1}}}]}, "did you mean 'kd'"),
        ({"steps": [{"distill": {"losses": ["kd"]}}]}, "weights of at least 0 by name"),
        ({"steps": [{"distill": {"teacher": []}}]}, "empty list"),
        ({"steps": [{"distill": {"teacher": "big"}}]}, "module:callable"),
        ({"steps": [{"distill": {"features": ["a"]}}]}, "student layers"),
        ({"steps": [{"quantize": {"bits": "8"}}]}, "bits"),
        (
            {"steps": ["quantize", {"export": {"runtimes": ["onnxruntim"]}}]},
            "did you mean 'onnxruntime'",
        ),
        (
            {"steps": ["quantize", {"export": {"runtimes": [["a"]]}}]},
            "runtimes: got .*expected one of",
        ),
        (
            {"steps": ["quantize", {"export": {"runtimes": ["onnxruntime", "onnxruntime"]}}]},
            "twice",
        ),
        ({"steps": ["quantize", {"export": {"runtimes": "onnxruntime"}}]}, "a list of"),
        ({"steps": ["quantize", {"prune": {"macs": 0.5}}]}, "prune first"),
        ({"steps": ["export", "fit"]}, "comes after export"),
        ({"steps": ["export", "export"]}, "one is enough"),
        ({"steps": ["verify"]}, "put quantize and export before"),
        ({"steps": [{"quantize": {"bits": 4}}, "export"]}, "bits: 4"),
        ({"limits": []}, "mapping"),
        ({"limits": {"speed": 2}}, "did you mean 'speedup'"),
        ({"limits": {"speedup": "fast"}}, "positive number"),
        ({"limits": {"speedup": float("inf")}}, "positive number"),
        ({"limits": {"on_fail": "ignore"}}, "'stop' or 'warn'"),
        ({"limits": {"on_fail": {"speedup": "ignore"}}}, "'stop' or 'warn'"),
        ({"limits": {"on_fail": {"speed": "warn"}}}, "did you mean 'speedup'"),
        ({"limits": {"macs": 0.2}}, "contradicts"),
        ({"limits": {"speedup": 2}, "steps": [{"prune": {"macs": 0.5}}]}, "no step exports"),
        ({"limits": {"size_ratio": 8}, "steps": ["quantize", "export"]}, "at most 4"),
    ],
)
def test_wrong(tmp_path, changes, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mapping of keys"),
        ("- a", "mapping of keys"),
        ("a: [", "not YAML"),
        ("version: 1\nversion: 1", "twice"),
        ("model: !!python/object/apply:os.system ['true']", "not YAML"),
        ("version: 1", "no 'model'"),
    ],
)
def test_not_a_recipe(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_the_shipped_schema_is_the_generated_one():
    """After a change: `mirabelle schema > src/mirabelle/pipeline/recipe.schema.json`."""
    assert schema.SHIPPED.read_text(encoding="utf-8") == schema.text()


def test_the_schema_knows_steps_options_and_names():
    steps = schema.schema()["properties"]["steps"]["items"]["anyOf"]
    by_name = {n: s["properties"][n] for s in steps[1:] for n in s["properties"]}
    assert set(by_name) == set(STEPS) and "prune" not in steps[0]["enum"]
    for name, known in STEPS.items():
        assert list(by_name[name]["properties"]) == list(known)
    assert by_name["sparsify"]["required"] == ["sparsity"]
    assert "taylor" in by_name["prune"]["properties"]["criterion"]["anyOf"][0]["enum"]
    training = by_name["prune"]["properties"]["train"]["anyOf"][0]["properties"]
    assert "epochs" in training and "sparsify" not in training and "seed" not in training


def test_unreadable(tmp_path):
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("version: 1\nmodel: a:b\ndata: a:c\nsteps: [{fit: {lr: 1e-3}}]")
    assert load_recipe(path).steps[0].options["lr"] == 0.001
