"""Pages and tables of the reference, made from the declarations that the code checks by."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import mirabelle as mb
from mirabelle.base.options import REQUIRED, Option, options_of
from mirabelle.cli import COMMANDS, main
from mirabelle.pipeline.declarations import STEPS
from mirabelle.pipeline.recipe import Limits, Recipe
from mirabelle.report.sections import in_apps
from mirabelle.runtimes import RUNTIMES

VERBS: dict[str, Callable] = {
    name: getattr(mb, name)
    for name in (
        "compress",
        "prune",
        "factorize",
        "sparsify",
        "distill",
        "fit",
        "quantize",
        "export",
        "verify",
        "measure",
    )
}


def cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def default(option: Option) -> str:
    value = option.default
    if value is REQUIRED:
        return "required"
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{getattr(shown, '__name__', None) or repr(shown)}`"


def row(option: Option) -> str:
    """Name, default, what it may be, and what it is for."""
    names = list(dict.fromkeys(n for table in option.names for n in table.names))
    may = cell(option.expected)
    if names:
        may = ", ".join(f"`{n}`" for n in names) + (f"; or {may}" if may != "text" else "")
    return f"| `{option.name}` | {default(option)} | {may} | {cell(option.doc)} |"


def table(options: Iterable[Option]) -> str:
    lines = ["| option | default | may be | what it is |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(row, options)])


def options_of_verb(name: str) -> str:
    """The table of a verb's options; `{{ options prune }}` on a page."""
    return table(options_of(VERBS[name]).values())


def in_app(system: str, runtime: str) -> str:
    """The code of a report's downloads; `{{ android litert }}` and `{{ ios litert }}` on a page."""
    name, shape = f"model{RUNTIMES[runtime].suffix}", ["1", "3", "224", "224"]
    if system == "ios":
        return f"```swift\n{in_apps.on_ios(runtime, name, shape)}\n```"
    return f"```kotlin\n{in_apps.on_android(runtime, name, shape)}\n```"


def recipe_page() -> str:
    parts = [
        "# The recipe",
        "Made from the declarations that check a recipe. [Recipes](../recipes.md) explains them, "
        "and `mirabelle schema` prints the same as a JSON Schema for editors.",
        "## The file",
        table(options_of(Recipe).values()),
        "## Limits",
        table(options_of(Limits).values()),
    ]
    for name, options in STEPS.items():
        parts += [f"## {name}", table(options.values())]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """What `mirabelle COMMAND --help` prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main([command, "--help"])
    return said.getvalue().strip()


def command_line_page() -> str:
    parts = [
        "# The command line",
        "What `--help` prints of every command. Exit codes have [a page](exit-codes.md).",
    ]
    for name in COMMANDS:
        parts += [f"## mirabelle {name}", f"```text\n{help_of(name)}\n```"]
    return "\n\n".join(parts) + "\n"
