"""The page of a run: every figure on it, nothing loaded from elsewhere, nothing unescaped."""

from __future__ import annotations

import copy
import json
import re

import pytest

from mirabelle import report as reports
from mirabelle.base.png import URI
from mirabelle.cli import main
from mirabelle.report.schema import Report
from mirabelle.report.style import CSS, SCRIPT
from tests.report.pages import PICTURES, Page, drawings, headings, small, text_of

FILE = re.compile(r"report\.json|\w[\w.-]*/\w[\w.-]*")

# The page as a whole


def test_the_sections_stand_in_their_order(example):
    expected = (
        "What each step cost and bought | Before and after | Accuracy against latency and size | "
        "Every layer | Channels kept | Quantization | Does the runtime compute the same? | "
        "Where the time goes | Training | How it was measured | The recipe"
    )
    assert " | ".join(headings(example)) == expected


def test_nothing_is_loaded_from_elsewhere(example):
    page = reports.render({**example, "files": {"onnxruntime": ["model.onnx"]}, "data": PICTURES})
    assert page.count("<img ") == 1 and "url(" not in page and "@import" not in page
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page)
    for word in ("fetch", "XMLHttp", "import(", "WebSocket", "eval", "innerHTML", "document.write"):
        assert word not in SCRIPT
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "base", "object")
        assert not {"xlink:href", "srcset", "style"} & set(attributes)
        assert tag == "img" or "src" not in attributes
        assert tag != "img" or URI.fullmatch(attributes["src"])
        assert not any(a.startswith("on") for a in attributes)
        target = attributes.get("href", "#")
        assert target.startswith(("#", "data:text/yaml;")) or FILE.fullmatch(target)
    assert page.count("<script>") == 1 and f"<script>{SCRIPT}</script>" in page
    assert len(SCRIPT) < 4000


def test_the_contents_lead_to_every_section(example):
    page = Page(reports.render(example))
    anchors = [a["id"] for t, a in page.tags if t == "section"]
    links = [a["href"] for t, a in page.tags if t == "a" and a["href"].startswith("#")]
    assert links[: len(anchors)] == [f"#{a}" for a in anchors] and len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("name", ["../../x", "a/b", "https:x", "", "."])
def test_no_link_leads_out_of_the_folder(example, name):
    found = {"onnxruntime": [name, "model.onnx"], name: ["model.onnx"]}
    links = {
        a["href"]
        for t, a in Page(reports.render({**example, "files": found})).tags
        if t == "a" and not a["href"].startswith("#")
    }
    assert {v for v in links if not v.startswith("data:")} == {
        "report.json",
        "onnxruntime/model.onnx",
    }


def test_what_the_run_says_is_escaped(example):
    evil = '<script>alert("x")</script>\x00\'&'

    def poison(value):
        if isinstance(value, dict):
            return {
                evil + k if k in ("seed", "torch", "prune") else k: poison(v)
                for k, v in value.items()
            }
        if isinstance(value, list):
            return [poison(v) for v in value]
        return evil + value if isinstance(value, str) else value

    for key in ("onnxruntime", "openvino"):
        for stage in example["stages"]:
            stage["runtimes"][evil + key] = stage["runtimes"].pop(key)
        example["profile"][evil + key] = example["profile"].pop(key)
    page = reports.render(poison(example))
    assert "alert(" in page and page.count("<script") == 1 and "\x00" not in page
    assert len([t for t, _ in Page(page).tags if t == "script"]) == 1
    drawings(page)


def test_the_drawings_are_valid_xml_and_have_names(example):
    found = drawings(reports.render(example))
    assert len(found) > 30
    for drawing in found:
        assert drawing.get("aria-label") or drawing.get("aria-hidden") == "true"
        for element in drawing.iter():
            for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy", "r"):
                if name in element.attrib:
                    assert re.fullmatch(r"-?[\d.]+(e-\d+)?%?", element.get(name)), (
                        element.tag,
                        name,
                        element.get(name),
                    )
                if name in ("width", "height") and name in element.attrib:
                    assert float(element.get(name).rstrip("%")) >= 0


def test_nothing_is_a_number_that_is_not_one(example):
    text = text_of(example)
    assert not re.search(r"\b(nan|inf|None|null|True|False)\b", text.split("The recipe")[0])


# Reports that lack things


@pytest.mark.parametrize(
    "empty",
    [
        {},
        {"stages": []},
        {
            "stages": None,
            "limits": None,
            "quantization": None,
            "profile": None,
            "training": None,
            "result": None,
        },
    ],
)
def test_an_empty_report_is_a_page(empty):
    page = reports.render(empty)
    Page(page)
    assert "<h2>" not in page


SECTIONS = {
    "channels": "Channels kept",
    "quantization": "Quantization",
    "verification": "Does the runtime compute the same?",
}
SECTIONS |= {"profile": "Where the time goes", "training": "Training", "recipe": "The recipe"}


@pytest.mark.parametrize(("key", "title"), SECTIONS.items())
def test_a_missing_section_is_left_out_and_nothing_else(example, key, title):
    before = headings(example)
    del example[key]
    assert headings(example) == [h for h in before if h != title]


def places(value, path=()):
    yield path
    for k, v in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(v, (*path, k))


def test_any_part_may_be_null_or_empty(example):
    report = small(example)
    tried = 0
    for path in places(report):
        if not path:
            continue
        for nothing in (None, [], {}):
            changed = copy.deepcopy(report)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if nothing is not None and not isinstance(parent[path[-1]], type(nothing)):
                continue
            parent[path[-1]] = nothing
            page = reports.render(changed)
            shown = page.split("</style>")[1].split("<script>")[0]
            assert "None" not in shown.split("<h2>The recipe")[0], path
            tried += 1
    assert tried > 300


def test_write_leaves_both_files(example, tmp_path):
    page = reports.write(Report.of(example), tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    written = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert written == Report.of(example).to_dict()
    assert page.read_text(encoding="utf-8") == reports.render(example)
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_the_page_drawn_again_is_the_page(example, tmp_path):
    """Keys stand in the order of the run, in the page and in its JSON."""
    for stage in example["stages"]:
        stage["runtimes"] = dict(sorted(stage["runtimes"].items(), reverse=True))
    page = reports.write(Report.of(example), tmp_path)
    first = page.read_text(encoding="utf-8")
    for given in (tmp_path / "report.json", tmp_path):  # the file, or the folder of the run
        (tmp_path / "report.html").unlink(missing_ok=True)
        assert main(["report", str(given)]) == 0
    assert page.read_text(encoding="utf-8") == first
    assert first.index("<h3>OpenVINO") < first.index("<h3>ONNX Runtime")


def luminance(color: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_bars_stand_out_from_what_is_behind_them_and_text_is_readable(dark):
    light, _, night = CSS.partition("@media screen and (prefers-color-scheme: dark)")
    colors = dict(re.findall(r"--([\w-]+):\s*(#\w{6})", light.partition("* {")[0]))
    if dark:
        colors |= dict(re.findall(r"--([\w-]+):\s*(#\w{6})", night.partition("* {")[0]))
    for behind in ("track", "paper", "card"):
        for bar in ("before", *(f"c{i}" for i in range(6))):
            assert contrast(colors[bar], colors[behind]) >= 3, (bar, behind)
    for text in ("ink", "soft", "accent", "good", "bad"):
        for behind in ("paper", "card"):
            assert contrast(colors[text], colors[behind]) >= 4.5, (text, behind)
    assert contrast(colors["bad"], colors["bad-tint"]) >= 4.5
    assert contrast(colors["good"], colors["good-tint"]) >= 4.5


def test_a_report_that_is_not_json_leaves_no_page(example, tmp_path):
    example["inputs"] = {"model": object()}
    with pytest.raises(TypeError):
        reports.write(Report.of(example), tmp_path)
    assert list(tmp_path.iterdir()) == []
