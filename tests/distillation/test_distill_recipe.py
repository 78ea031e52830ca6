"""Distillation from a recipe: ensembles, files as teachers, the cache; and what is wrong is said as
the recipe is read.
"""

import pytest
import torch
import yaml
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import RecipeError
from mirabelle.distillation import save_outputs
from mirabelle.pipeline.facts import depends
from mirabelle.pipeline.recipe import Step, load_recipe
from tests.tiny import teacher


def written(tmp_path, steps, **changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "model": "tests.tiny:model",
                "data": "tests.tiny:data",
                "steps": steps,
                **changes,
            }
        )
    )
    return path


def history(run) -> list:
    return run.report["training"]


@pytest.mark.filterwarnings("ignore:training made the network worse")  # on four dozen samples
def test_ensemble_with_a_cache_gives_what_it_gives_without(tmp_path):
    options = {
        "teacher": ["original", "tests.tiny:teacher"],
        "ensemble": "confidence",
        "weights": [1, 2],
        "epochs": 3,
        "views": 1,
        "precision": "float32",
    }
    runs = []
    for name, more in (("plain", {}), ("cached", {"cache": str(tmp_path / "cache")})):
        runs.append(
            mb.run(written(tmp_path, [{"distill": {**options, **more}}]), folder=tmp_path / name)
        )
    plain, cached = (
        mb.load(tmp_path / name / "model", teacher_of_width(8)) for name in ("plain", "cached")
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), cached.state_dict().values(), strict=True)
    )
    assert list((tmp_path / "cache").glob("*/*.safetensors"))


def teacher_of_width(width: int) -> nn.Module:
    from tiny import model

    return model(0, width)


def test_an_exported_program_teaches(tmp_path):
    file = tmp_path / "teacher.pt2"
    torch.export.save(torch.export.export(teacher().eval(), (torch.zeros(2, 1, 8, 8),)), file)
    options = {"losses": {"kd": 1.0}, "lr": 0.01}
    weights = []
    for name in (str(file), "tests.tiny:teacher"):
        folder = tmp_path / f"run{len(weights)}"
        mb.run(written(tmp_path, [{"distill": {"teacher": name, **options}}]), folder=folder)
        weights.append(mb.load(folder / "model", teacher_of_width(8)).state_dict())
    for a, b in zip(*(w.values() for w in weights), strict=True):
        torch.testing.assert_close(a, b)
    assert depends(Step("distill", {"teacher": str(file)}))[str(file)]


def test_an_onnx_file_teaches(tmp_path):
    exported = mb.export(
        teacher(), tmp_path / "out", runtime="onnxruntime", inputs=torch.zeros(1, 1, 8, 8)
    )
    done = mb.run(
        written(tmp_path, [{"distill": {"teacher": str(exported.path), "losses": {"kd": 1.0}}}]),
        folder=tmp_path / "run",
    )
    assert done.folder.is_dir()
    assert len(
        depends(Step("distill", {"teacher": str(exported.path)}))[str(exported.path)]
    ) == len(exported.files)
    with pytest.raises(RecipeError, match="no layers"):
        mb.run(
            written(
                tmp_path, [{"distill": {"teacher": str(exported.path), "features": {"2": "2"}}}]
            ),
            folder=tmp_path / "other",
        )


def test_a_damaged_teacher_is_found_before_the_first_step(tmp_path):
    path = save_outputs(tmp_path / "t.safetensors", [torch.zeros(4, 1, 8, 8)], teacher())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RecipeError, match=r"t\.safetensors"):
        mb.run(
            written(tmp_path, [{"fit": {}}, {"distill": {"teacher": str(path)}}]),
            folder=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ensemble": "means"}, "ensemble: got 'means'"),
        ({"teacher": ["original", "tests.tiny:teacher"], "weights": [1]}, "list of 2 numbers"),
        (
            {"teacher": ["original", "tests.tiny:teacher"], "teacher_temperatures": "1"},
            "list of numbers, one for each",
        ),
        ({"cache": 3}, "expected a folder"),
        ({"cache": "c", "features": {"2": "2"}}, "needs their layers"),
        ({"cache": "c", "cache_top": 1.5}, "integer|number of classes"),
        ({"views": 0}, "views: got 0; expected a positive integer"),
        ({"teacher": "net.pt"}, "a file"),
        ({"losses": {"head": 1.0}}, "head="),
        ({"losses": {"decoupled": 1.0}}, "did you mean 'decoupled_kd'"),
    ],
)
def test_wrong(tmp_path, options, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(written(tmp_path, [{"distill": options}]))
