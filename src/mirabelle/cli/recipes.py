"""The commands about recipes and their reports, and the one that sets up the emulated Arm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mirabelle.base.errors import InputError, LimitError
from mirabelle.cli.common import FLAG, Common, say


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
        bool, FLAG, Parameter(help="only check the recipe, the network and the data")
    ] = False,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Carry out a recipe and write its report."""
    from mirabelle.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe)
    if check:
        from mirabelle.pipeline.facts import check_fit
        from mirabelle.sources.callables import build_data, build_model

        check_fit(loaded, build_model(loaded.model), build_data(loaded.data))
        steps = [s.name for s in loaded.steps]
        text = f"{recipe} is sound: {', '.join(steps)}"
        return say({"recipe": recipe, "steps": steps}, common.json, text)
    from mirabelle.cli.table import summary
    from mirabelle.pipeline.api import run as carry_out

    finished = carry_out(loaded, resume=resume, folder=folder, check=False)
    page = (finished.folder / "report.html").resolve()
    found: dict[str, Any] = {k: finished.report[k] for k in ("stages", "result", "limits")}
    found |= {"folder": str(finished.folder.resolve()), "report": str(page)}
    say(found, common.json, f"{summary(finished.report)}\nreport: {page}")
    for warning in finished.warnings:
        print(f"warning: limit missed: {warning}", file=sys.stderr)
    if finished.missed:
        raise LimitError(finished.shortfall())
    return 0


def report(
    json_file: Annotated[str, Parameter(help="report.json of a run")],
    /,
    *,
    common: Common = Common(),  # noqa: B008
) -> int:
    """Write the HTML of a report.json again."""
    from mirabelle.base.files import read_json, write_text
    from mirabelle.report import render

    if not Path(json_file).is_file():
        raise InputError(f"there is no {json_file}")
    target, found = Path(json_file).with_suffix(".html"), read_json(json_file)
    try:
        page = render(found)
    except Exception as error:  # of whatever is missing in a file that no run wrote
        raise InputError(
            f"{json_file} is no report of a run ({type(error).__name__}: {error}); give the "
            "report.json of a run's folder"
        ) from error
    write_text(target, page)
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
