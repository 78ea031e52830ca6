"""The stylesheet and the script of the page, which hold no part of any report."""

from __future__ import annotations

from pathlib import Path

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("script.js").read_text(encoding="utf-8")
