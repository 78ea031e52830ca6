"""The card of a saved network: a README.md whose first lines hubs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirabelle.base.files import write_text

NAME = "README.md"
OURS = "library_name: mirabelle"  # by which a card of ours is known


def card(title: str, tags: Sequence[str], rows: Sequence[tuple[str, str]], original: str) -> str:
    """Markdown with the metadata that Hugging Face's hub reads.

    title: what the network is. rows: of a table, what and how much. original: what it has to be
    loaded with, as Python.
    """
    listed = "\n".join(f"- {tag}" for tag in ("mirabelle", "pytorch", *tags))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"""---
{OURS}
tags:
{listed}
---

# {title}

Written by `mb.save`. `model.safetensors` has the weights; `model.json` says their sizes, the grids
and the checksums. Nothing is pickled.

```python
import mirabelle as mb

# {original}: what the network was made from
network = mb.load("path/to/this/folder", {original})
```

| | |
|---|---|
{table}
"""


def write_card(folder: Path, text: str) -> None:
    """Writes the card, unless a README.md is there that is not ours."""
    path = folder / NAME
    try:
        if path.exists() and OURS not in path.read_text(encoding="utf-8", errors="replace"):
            return
    except OSError:
        return
    write_text(path, text)
