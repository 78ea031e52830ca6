"""The recipe of the run, as YAML that reads back to the same."""

from __future__ import annotations

import json
import re
from typing import Any

from mirabelle.report.parts import section
from mirabelle.report.svg import element, escape

PLAIN = re.compile(r"[A-Za-z_][\w./:-]*(?<!:)")
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def as_yaml(value: Any, indent: str = "") -> str:
    """JSON-like data as YAML that reads back to the same value: dicts as blocks, lists of dicts as
    dashes, the rest in a line.
    """

    def leaf(v: Any) -> str:
        if isinstance(v, str) and PLAIN.fullmatch(v) and v.lower() not in WORDS:
            return v
        return json.dumps(v, ensure_ascii=False)

    if isinstance(value, dict) and value:
        lines = []
        for k, v in value.items():
            nested = (isinstance(v, dict) and v) or (
                isinstance(v, list) and any(isinstance(e, dict) for e in v)
            )
            lines.append(
                f"{indent}{leaf(str(k))}:"
                + (f"\n{as_yaml(v, indent + '  ')}" if nested else f" {leaf(v)}")
            )
        return "\n".join(lines)
    if isinstance(value, list) and any(isinstance(e, dict) for e in value):
        return "\n".join(f"{indent}- {as_yaml(e, indent + '  ').lstrip()}" for e in value)
    return indent + leaf(value)


def recipe(value: Any, found: bool = False) -> str:
    """found: by a search; else it was asked for."""
    if not value:
        return ""
    said = (
        "It makes the best network again, without the search." if found else "What was asked for."
    )
    return section("The recipe", said, element("pre", escape(as_yaml(value)), tabindex=0))
