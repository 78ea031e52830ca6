"""The commands about recipes and their reports, and the one that sets up the emulated Arm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mirabelle.base.errors import InputError, LimitError
from mirabelle.cli.common import FLAG, Common, say

if TYPE_CHECKING:
    from mirabelle.pipeline.recipe import Recipe


def run(
    recipe: Annotated[str, Parameter(help="a YAML file")],
    /,
    *,
    resume: Annotated[
        bool,
        FLAG,
        Parameter(help="take finished steps from the folder instead of doing them again"),
    ] = False,
    folder: Annotated[
        str | None, Parameter(help="where everything goes; runs/<recipe's name> by default")
    ] = None,
    check: Annotated[
        bool,
        FLAG,
        Parameter(help="only check recipe, network and data, and convert to every runtime"),
    ] = False,
    dry_run: Annotated[
        bool, FLAG, Parameter(help="only say what would be done, and roughly how long it takes")
    ] = False,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Carry out a recipe and write its report."""
    from mirabelle.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe)
    if dry_run:
        from mirabelle.cli.plans import dry_run as said

        return said(loaded, Path(folder or Path("runs") / Path(recipe).stem), common)
    if check:
        return _check(recipe, loaded, common)
    return carried_out(loaded, resume, folder, common)


def carried_out(
    recipe: Recipe,
    resume: bool,
    folder: str | None,
    common: Common,
    content: dict[str, Any] | None = None,
) -> int:
    """Carries out a recipe and prints its table. content: the recipe, to be written beside the
    report so that it can be changed and run again.
    """
    from mirabelle.cli.table import summary
    from mirabelle.pipeline.api import run as carry_out
    from mirabelle.report.schema import Report

    finished = carry_out(recipe, resume=resume, folder=folder, check=False)
    if content is not None:
        write_recipe(finished.folder / "recipe.yaml", content)
    page = (finished.folder / "report.html").resolve()
    found: dict[str, Any] = {
        k: finished.report.get(k)
        for k in ("stages", "result", "limits", "advice", "failed", "stopped")
    }
    files = [str(p.resolve()) for p in finished.files]
    found |= {"folder": str(finished.folder.resolve()), "report": str(page), "files": files}
    found["verification"] = finished.report.get("verification", [])
    found["data"] = finished.report["data"]["made_up"] or finished.report["data"]["text"]
    written = "".join(f"\nfile: {f}" for f in files)
    say(found, common.json, f"{summary(Report.of(finished.report))}{written}\nreport: {page}")
    for warning in finished.warnings:
        print(f"warning: limit missed: {warning}", file=sys.stderr)
    if finished.missed:
        raise LimitError(finished.shortfall())
    return 0


def write_recipe(path: Path, content: dict[str, Any]) -> None:
    """Writes a recipe as YAML."""
    import yaml

    from mirabelle.base.files import write_text

    said = "# What `mirabelle run` does again, from the folder that the command was called in.\n"
    write_text(path, said + yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def _check(recipe: str, loaded: Any, common: Common) -> int:
    """What `run --check` does."""
    from mirabelle.base.errors import RecipeError
    from mirabelle.pipeline.dry import failures, listed
    from mirabelle.pipeline.facts import check_fit
    from mirabelle.pipeline.inputs import check as opened

    named = opened(loaded)
    example = check_fit(named.recipe, named.model, named.loaders)
    found = failures(named.recipe, named.model, named.loaders, example)
    if any(found.values()):
        raise RecipeError(
            f"{recipe}: {len(found) - list(found.values()).count(None)} of {len(found)} runtimes "
            f"cannot have files of this network: {listed(found)}"
        )
    steps = [s.name for s in loaded.steps]
    text = f"{recipe} is sound: {', '.join(steps)}"
    if found:
        text += f"; files can be made for {', '.join(found)}"
    return say({"recipe": recipe, "steps": steps, "runtimes": list(found)}, common.json, text)


def report(
    run: Annotated[str, Parameter(help="the folder of a run, or its report.json")],
    /,
    *,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Write the HTML of a run's report again."""
    from mirabelle.base.files import read_json, write_text
    from mirabelle.report import render

    source = Path(run) / "report.json" if Path(run).is_dir() else Path(run)
    target, found = source.with_suffix(".html"), read_json(source)
    if not isinstance(found, dict):
        raise InputError(
            f"{source} is no report of a run, as it holds a {type(found).__name__}; give the "
            "report.json of a run's folder"
        )
    write_text(target, render(found))
    return say({"report": str(target)}, common.json, str(target))


def certify(
    folder: Annotated[str, Parameter(help="the folder of a run")],
    /,
    *,
    check: Annotated[
        bool,
        FLAG,
        Parameter(help="compare the folder with its certificate; exit code 4 where a byte differs"),
    ] = False,
    expect: Annotated[
        str | None,
        Parameter(help="the SHA-256 that the certificate must have; told by another way"),
    ] = None,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Write what proves a run's folder, or check it byte by byte."""
    from mirabelle.pipeline import certificate

    found = certificate.check(folder, expect) if check else certificate.certify(folder)
    return say(found.to_dict(), common.json, str(found))


def schema(*, common: Common = Common()) -> int:  # noqa: B008
    """Print the JSON Schema of recipes, for editors."""
    from mirabelle.pipeline.schema import text

    print(text(), end="")
    return 0


def setup_arm64(
    *,
    runtimes: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative=(),
            help="those whose Arm builds are wanted; those that are installed by default",
        ),
    ] = None,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Fetch and build what `measure --device arm64` needs, into the cache folder."""
    from mirabelle.devices import arm_setup

    done = arm_setup.set_up(runtimes)
    packages = dict(sorted(done.packages.items()))
    text = f"{done.root.parent}: {', '.join(f'{p} {v}' for p, v in packages.items())}"
    return say({"root": str(done.root.parent), "packages": packages}, common.json, text)
