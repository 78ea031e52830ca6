"""The command that uses all techniques together."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

import mirabelle
from mirabelle.base.options import options_of
from mirabelle.cli.common import Common, say, weighted
from mirabelle.cli.options import closed, only_given, taking
from mirabelle.cli.techniques import DATA, MODEL, WEIGHTS
from mirabelle.compression.api import compress as verb
from mirabelle.sources.data import read

_OWN = options_of(verb).without("check", "size", "data", "model")
_DATA = options_of(read).in_recipes.without("size")
SIZE = Parameter(
    consume_multiple=True,
    negative=(),
    help="up to 1: the share of the file's bytes that is kept at most; above: pixels of pictures",
)


@taking(_OWN)
@taking(_DATA)
def command(
    model: Annotated[str, MODEL],
    /,
    *,
    data: Annotated[str, DATA],
    weights: Annotated[str | None, WEIGHTS] = None,
    size: Annotated[list[float] | None, SIZE] = None,
    common: Common = Common(),  # noqa: B008
    **options: Any,
) -> int:
    """The smallest network that holds your limits, found, verified and timed."""
    pictures, own = only_given(options, _DATA), only_given(options, _OWN)
    pixels = [int(n) for n in size or () if n > 1]
    if pixels:
        pictures["size"] = pixels if len(pixels) > 1 else pixels[0]
    if shares := [n for n in size or () if n <= 1]:
        own["size"] = shares[0]
    named = {"folder": data, **pictures} if pictures else data
    found = mirabelle.compress(weighted(model, weights), named, **own)
    plain = {
        "path": str(found.artifact.path.resolve()),
        "report": str(found.report.resolve()),
        "best": found.best.to_dict(),
        "front": [p.to_dict() for p in found.front],
        "missed": found.missed,
    }
    return say(plain, common.json, str(found))


compress = closed(command)
