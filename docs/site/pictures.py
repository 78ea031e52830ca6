"""The pictures of the documents, made anew: `python docs/site/pictures.py [runs/fashion]`.

`seminar/threshold.svg` is what the cells of the seminar draw. With the folder of a run,
`report.png` is the first screen of its report, as Chromium shows it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1]
CELL = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def threshold() -> Path:
    """Runs the seminar's cells in a folder of their own."""
    page, target = DOCS / "seminar" / "en.md", DOCS / "seminar" / "threshold.svg"
    code = "\n".join(m[2] for m in CELL.finditer(page.read_text(encoding="utf-8")) if not m[1])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        shutil.copyfile(Path(folder) / "threshold.svg", target)
    return target


def screen(run: Path) -> Path:
    """The report of a run, 1280 pixels wide."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium is installed: apt-get install chromium")
    target = DOCS / "report.png"
    line = [browser, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
    line += ["--window-size=1280,1500", f"--screenshot={target}"]
    subprocess.run([*line, (run / "report.html").resolve().as_uri()], check=True)
    return target


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(threshold())
    for name in sys.argv[1:2]:
        print(screen(Path(name)))
