"""Declarations by hand: what a call, a recipe and the JSON Schema make of them."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

import mirabelle as mb
from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.options import (
    Check,
    Expected,
    FromRun,
    OneOf,
    OptionsOf,
    declared,
    options_of,
    shown,
)

TABLE = {"taylor": max, "l1": min}


def even(value: int) -> None:
    if value % 2:
        raise InputError("odd numbers have no half")


def ordered(options: Mapping[str, Any]) -> None:
    if options["low"] > options["high"]:
        raise InputError(f"low is {options['low']} and high {options['high']}")


@declared(ordered)
def spread(
    *,
    low: Annotated[float, Ge(0), Le(1), Doc("where it begins")] = 0.0,
    high: Annotated[float, Ge(0), Le(1), Doc("where it ends")] = 1.0,
) -> tuple:
    return low, high


@declared(rest=spread)
def cook(
    dish: str,
    spice: Annotated[str | Callable, OneOf(TABLE, plugin=True), Doc("what it tastes of")] = "l1",
    *,
    share: Annotated[float | None, Gt(0), Lt(1), Doc("how much is eaten")] = None,
    guests: Annotated[int, Ge(1), Doc("who eats")] = 2,
    eggs: Annotated[int, Check(even), Doc("by pairs")] = 2,
    hot: Annotated[bool, Doc("warm or not")] = True,
    size: Annotated[Literal["small", 16], Doc("of the pan")] = "small",
    sides: Annotated[Sequence[Annotated[str, OneOf(lambda: TABLE)]], Doc("beside it")] = (),
    keep: Annotated[Iterable[str], Expected("a list such as [rice]"), Doc("for later")] = (),
    spreading: Annotated[
        Mapping[str, Any] | None, OptionsOf(lambda: options_of(spread)), Doc("how thick")
    ] = None,
    seed: Annotated[int, FromRun, Doc("of chance")] = 0,
    waiter: Annotated[Callable | None, Doc("who brings it")] = None,
    **more: Any,
) -> Any:
    """Cooks."""
    return spice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1}, "share is 1; expected a number above 0 and below 1 (how much is eaten)"),
        ({"share": "0.5"}, "share is '0.5'; expected a number above 0 and below 1"),
        ({"share": float("nan")}, "share is nan; expected a number"),
        ({"share": True}, "share is True; expected a number"),
        ({"share": np.array(0.5)}, "share is a ndarray; expected a number"),
        ({"share": torch.tensor(0.5)}, "share is a Tensor; expected a number"),
        ({"share": 1e300}, "beyond what float32 holds; expected a number above 0 and below 1"),
        ({"guests": 2**70}, "which is beyond 64 bits; expected a positive integer"),
        ({"keep": torch.tensor(1)}, "keep is a Tensor; expected a list such as [rice]"),
        ({"keep": b"rice"}, "keep is a bytes; expected a list such as [rice]"),
        ({"keep": ["rice", 3]}, "keep is ['rice', 3]; expected a list such as [rice]"),
        ({"guests": 0}, "guests is 0; expected a positive integer (who eats)"),
        ({"guests": "8"}, "guests is '8'; expected a positive integer"),
        ({"guests": True}, "guests is True; expected a positive integer"),
        ({"guests": 2.0}, "guests is 2.0; expected a positive integer"),
        ({"guests": None}, "guests is None; expected a positive integer"),
        ({"eggs": 3}, "eggs is 3: odd numbers have no half"),
        ({"hot": 1}, "hot is 1; expected true or false"),
        ({"size": 8}, "size is 8; expected 'small' or 16"),
        ({"size": "16"}, "size is '16'; expected 'small' or 16"),
        ({"spice": "tailor"}, "spice is 'tailor'; did you mean 'taylor'?"),
        ({"spice": 3}, "spice is 3; expected one of taylor, l1, or 'package.module:function'"),
        ({"spice": "nowhere:f"}, "spice is 'nowhere:f': there is no module 'nowhere' to import"),
        ({"sides": ["l1", "tailor"]}, "sides is ['l1', 'tailor']; did you mean 'taylor'?"),
        ({"waiter": 3}, "waiter is 3; expected a callable"),
        ({"spreading": {"hihg": 1}}, "unknown option 'hihg'; did you mean 'high'?"),
        ({"spreading": {"low": 2}}, "low is 2; expected a number between 0 and 1"),
        ({"spreading": {"low": 0.9, "high": 0.5}}, "low is 0.9 and high 0.5"),
        ({"low": 2}, "low is 2; expected a number between 0 and 1 (where it begins)"),
        ({"low": 0.9, "high": 0.5}, "low is 0.9 and high 0.5"),
        ({"gests": 2}, "cook has no option 'gests'; did you mean 'guests'?"),
    ],
)
def test_wrong_values_are_named_with_what_is_expected(options, message):
    with pytest.raises(InputError) as error:
        cook("soup", **options)
    assert message in str(error.value)


def test_an_unknown_option_is_a_type_error_too():
    with pytest.raises(TypeError, match="did you mean 'share'"):
        cook("soup", shaer=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.5, "guests": 3, "hot": False, "size": 16, "spice": max},
        {"spice": "mirabelle.base.errors:choose", "sides": ("l1",), "keep": iter(["a"])},
        {"spreading": {"low": 0, "high": 1}, "waiter": print, "low": 0.2},
    ],
)
def test_right_values_pass_as_they_are(options):
    assert cook("soup", **options) is options.get("spice", "l1") or "spice" not in options


def test_by_position_and_missing():
    with pytest.raises(InputError, match="did you mean 'taylor'"):
        cook("soup", "tailor")
    with pytest.raises(TypeError, match="dish"):
        cook()


Share = Annotated[float | None, Gt(0), Le(1), Doc("how much of it")]
Guests = Annotated[int, Ge(1), Doc("who eats")]


def test_aliases_are_options_and_what_is_added_last_counts():
    def bake(
        *,
        share: Share = None,
        guests: Annotated[Guests, Le(8), FromRun, Doc("who waits")] = 2,
        names: list[str] | NotThere = (),  # noqa: F821
    ) -> None: ...

    known = options_of(bake)
    assert list(known) == ["share", "guests"] and list(known.in_recipes) == ["share"]
    assert known["share"].refuse(2) == "; expected a number above 0 and at most 1 (how much of it)"
    assert known["guests"].doc == "who waits" and known["guests"].refuse(9)
    assert options_of(cook)["guests"].doc == "who eats"


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("NotThere", "mix: spoon: 'NotThere' has a name that is not there"),
        ("Annotated[NotThere, Doc('of wood')]", "has a name that is not there"),
        ("Share | str", "has a Doc in a union; write Annotated"),
        ("str | NotThere | Share", "has a Doc in a union"),
        ("list[Guests]", "has a Doc within a type; write Annotated"),
        ("Callable[[Guests], None]", "has a Doc within a type"),
        ("Annotated[int, Ge(1)]", "has no Doc"),
    ],
)
def test_an_option_never_goes_missing_in_silence(annotation, message):
    def mix(spoon): ...

    mix.__annotations__ = {"spoon": annotation}
    with pytest.raises(TypeError, match=message):
        options_of(mix)


@functools.cache
def _functions() -> list[tuple[str, ast.FunctionDef]]:
    """Those of the package, with their modules."""
    root = Path(mb.__file__).parent
    return [
        (".".join(["mirabelle", *path.relative_to(root).with_suffix("").parts]), node)
        for path in sorted(root.rglob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]


def test_every_verb_of_the_package_can_be_read():
    verbs = {
        node.name: len(options_of(getattr(importlib.import_module(module), node.name)))
        for module, node in _functions()
        if any(ast.unparse(d).startswith("declared(") for d in node.decorator_list)
    }
    assert {"prune", "quantize", "fit", "distill", "companion", "callback"} <= set(verbs)
    assert len(verbs) >= 15 and min(verbs.values()) >= 2


def test_no_option_is_declared_twice():
    written = Counter(
        (argument.arg, ast.unparse(argument.annotation))
        for _, node in _functions()
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None
    )
    options = {option: n for option, n in written.items() if "Doc(" in option[1]}
    assert len(options) > 50 and [option for option, n in options.items() if n > 1] == []


def test_what_a_recipe_can_hold():
    known = options_of(cook).in_recipes
    assert "seed" not in known and "waiter" not in known and list(known)[-2:] == ["low", "high"]
    assert known["keep"].refuse("rice", recipe=True) == "; expected a list such as [rice]"
    assert known["keep"].refuse(["rice"], recipe=True) == ""
    with pytest.raises(InputError, match="low is 1"):
        known.check({"low": 1, "high": 0}, recipe=True)


def test_tables_are_read_when_they_are_needed():
    TABLE["mint"] = max
    try:
        assert cook("tea", spice="mint") == "mint"
    finally:
        del TABLE["mint"]


def test_schema():
    schema = options_of(cook).in_recipes.schema()
    fields = schema["properties"]
    assert schema["additionalProperties"] is False and "required" not in schema
    assert fields["guests"] == {
        "type": "integer",
        "minimum": 1,
        "description": "who eats",
        "default": 2,
    }
    assert fields["share"]["anyOf"][0] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
    }
    assert fields["spice"]["anyOf"][0] == {"enum": ["taylor", "l1"]}
    assert (
        fields["sides"]["items"] == {"enum": ["taylor", "l1"]} and fields["sides"]["default"] == []
    )
    assert list(fields["spreading"]["anyOf"][0]["properties"]) == ["low", "high"]


def test_values_in_messages_are_short():
    assert shown("a") == "'a'" and shown(object()) == "a object" and len(shown("x" * 300)) == 100


def test_importing_mirabelle_takes_neither_torch_nor_pydantic():
    code = "import sys, mirabelle; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_people_call_otherwise_is_understood():
    assert did_you_mean("tflite", ["litert", "mnn"]) == "; did you mean 'litert'?"
    with pytest.raises(InputError, match="did you mean 'onnxruntime'"):
        mb.export("net.onnx", "x", runtime="ort")
