"""The stylesheet of the page."""

from __future__ import annotations

from pathlib import Path

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
