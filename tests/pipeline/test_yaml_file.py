"""What a small YAML file asks for is small; everything else is an error in a line."""

import time

import pytest

from mirabelle.base.errors import RecipeError
from mirabelle.pipeline.recipe import load_recipe
from mirabelle.pipeline.yaml_file import DEEPEST, LARGEST, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500))
BAD = {
    "aliases of aliases": (BOMB, "more than 20000 values"),
    "a list in itself": ("a: &a [*a]\n", "levels deep"),
    "a mapping in itself": ("a: &a {b: *a}\n", "levels deep"),
    "deep": ("a: " + "[" * 100 + "]" * 100, "levels deep"),
    "deeper than Python": ("[" * 50_000, "nested too deep|not YAML"),
    "deep by aliases": (CHAIN, "levels deep"),
    "large": ("# " + "x" * LARGEST, "bytes"),
    "a long number": ("seed: " + "9" * 5000, "5000 characters"),
    "a list as key": ("? [a]\n: b\n", "a key is no text"),
    "no date": ("seed: 2001-99-99\n", "not YAML"),
    "no number": ("seed: !!float x\n", "not YAML"),
    "nothing as a number": ("seed: !!int ''\n", "not YAML"),
    "no truth": ("seed: !!bool x\n", "not YAML"),
    "an object": ("seed: !!python/object/apply:os.system [ls]\n", "not YAML"),
    "bytes": ("\x00\x01", "not YAML"),
    "twice": ("seed: 1\nseed: 2\n", "there twice"),
    "no anchor": ("seed: *a\n", "not YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_at_once(tmp_path, name):
    text, words = BAD[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(RecipeError, match=words) as error:
        load_recipe(path)
    assert time.process_time() - begun < 3
    assert len(str(error.value)) < 1000


def test_what_recipes_use(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "common: &c {lr: 1e-3, epochs: 2}\nsteps:\n- fit: {<<: *c, epochs: 3}\n- distill: *c\n"
    )
    steps = read_yaml(path)["steps"]
    assert steps == [{"fit": {"lr": 1e-3, "epochs": 3}}, {"distill": {"lr": 1e-3, "epochs": 2}}]
    path.write_text("[" * (DEEPEST - 2) + "]" * (DEEPEST - 2))
    read_yaml(path)
    path.write_text("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(RecipeError):
        read_yaml(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "x").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(tmp_path / "x")
