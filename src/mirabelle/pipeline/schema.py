"""The JSON Schema of recipes, from the declarations, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirabelle.base.options import REQUIRED, Options, options_of
from mirabelle.pipeline.declarations import STEPS
from mirabelle.pipeline.recipe import Limits, Recipe

SHIPPED = Path(__file__).with_name("recipe.schema.json")


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe."""
    plain = options_of(Recipe).schema()
    properties = plain["properties"]
    ordered = {
        "version": {"const": 1, "description": "of the format"},
        **{n: properties[n] for n in ("model", "data", "metric", "loss", "step", "load", "seed")},
        "limits": options_of(Limits).schema() | {"description": "what the result must keep"},
        "steps": {
            "type": "array",
            "minItems": 1,
            "description": "in order; each takes the network that the one before it left",
            "items": {"anyOf": [{"enum": _alone()}, *(_step(n, o) for n, o in STEPS.items())]},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of Mirabelle",
        **plain,
        "properties": ordered,
        "required": ["version", "model", "data", "steps"],
    }


def _alone() -> list[str]:
    """Steps whose name alone is enough."""
    return [
        name
        for name, options in STEPS.items()
        if name != "prune" and all(o.default is not REQUIRED for o in options.values())
    ]


def _step(name: str, options: Options) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: options.schema() | {"type": ["object", "null"]}},
        "required": [name],
        "additionalProperties": False,
    }


def text() -> str:
    """The schema as it is shipped."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
