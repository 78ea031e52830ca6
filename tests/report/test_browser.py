"""The page in a browser: its script sorts and searches, its anchors lead somewhere, and on a narrow
page nothing has to be scrolled sideways. Skipped where no Chromium is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from mirabelle import report as reports

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")

LOOK = """
const table = document.querySelector("table.sortable");
const head = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.startsWith("MACs"));
const button = table.tHead.rows[0].cells[head].querySelector("button");
const shown = () => [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) =>
  [r.cells[0].textContent, r.cells[head].dataset.v || ""]);
const found = { before: shown() };
button.click();
found.up = shown();
found.sorted = table.tHead.rows[0].cells[head].getAttribute("aria-sort");
button.click();
found.down = shown();
const field = document.querySelector(".search input");
field.value = "layer3 CONV1";
field.dispatchEvent(new Event("input"));
found.searched = shown();
found.count = document.querySelector(".search output").value;
found.anchors = [...document.querySelectorAll(".contents a")].every((a) =>
  document.querySelector(a.getAttribute("href")));
found.wide = document.documentElement.scrollWidth;
found.speed = [...document.querySelectorAll("tr.best td")].map((c) => {
  const box = c.getBoundingClientRect();
  return [c.dataset.head, box.left >= 0 && box.right <= INNER];
});
document.title = JSON.stringify(found);
"""


def seen(example: dict, tmp_path, width: int) -> dict:
    """What a browser makes of the page in a frame of this width."""
    for i, row in enumerate(example["channels"]):
        row["macs"] = [1e6 * (7 * i % 13 + 1), 1e6 * (5 * i % 11 + 1)]
    look = LOOK.replace("INNER", str(width))
    page = reports.render(example).replace("</body>", f"<script>{look}</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    frame = (
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>document.querySelector('iframe').onload = (e) => { document.body.dataset.found ="
        " e.target.contentDocument.title }</script>"
    )
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    line = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    line += ["--allow-file-access-from-files", "--virtual-time-budget=4000"]
    line += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    text = re.search(r'data-found="(.*?)"', done.stdout)
    assert text, done.stderr[-500:]
    return json.loads(text[1].replace("&quot;", '"').replace("&amp;", "&"))


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(example, tmp_path, width):
    found = seen(example, tmp_path, width)
    macs = [float(v) for _, v in found["up"] if v]
    assert macs == sorted(macs) and len(macs) > 5 and found["sorted"] == "ascending"
    assert [float(v) for _, v in found["down"] if v] == macs[::-1]
    assert [v for _, v in found["up"]][len(macs) :] == [""] * (len(found["up"]) - len(macs))
    assert {n for n, _ in found["searched"]} == {
        n for n, _ in found["before"] if "layer3" in n and "conv1" in n
    }
    assert found["count"] == f"{len(found['searched'])} of {len(found['before'])}"
    assert found["anchors"] and found["wide"] <= width
    visible = {name: whole for name, whole in found["speed"]}
    assert visible["speed-up"] and visible["latency p50"]


def test_every_printed_page_has_something_on_it(example, tmp_path):
    """Chromium's PDF has a content stream for each page; a blank one draws no text."""
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("pdftotext is not installed")
    (tmp_path / "page.html").write_text(reports.render(example), encoding="utf-8")
    line = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu"]
    line += [f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer"]
    line += [f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri()]
    subprocess.run(line, capture_output=True, timeout=60, check=True)
    text = subprocess.run(
        [reader, str(tmp_path / "page.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    pages = text.split("\f")[:-1]
    assert len(pages) > 3 and all(len(p.split()) > 5 for p in pages)
