"""The page of a run: every figure on it, nothing loaded from elsewhere, nothing unescaped, and
marks where the numbers say.
"""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mirabelle import report as reports
from mirabelle.report import html, sections, svg, units

EXAMPLE = Path(__file__).parent / "data" / "report_example.json"
VOID = {"meta", "br", "link", "img", "input", "hr"}


@pytest.fixture
def example() -> dict:
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Checks that elements nest, and collects the visible text, the tags and the attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))  # a no-break space is white space too


def text_of(report: dict) -> str:
    return Page(reports.render(report)).text


def headings(report: dict) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", reports.render(report))


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


# The page as a whole


def test_the_sections_stand_in_their_order(example):
    expected = (
        "Before and after | Accuracy against latency | Channels kept | Quantisation | Does the "
        "runtime compute the same? | "
        "Where the time goes | Training | How it was measured | The recipe"
    )
    assert " | ".join(headings(example)) == expected


def test_every_stage_is_there_with_its_figures(example):
    text = text_of(example)
    for stage in example["stages"]:
        assert stage["label"] in text
        for figures in stage["runtimes"].values():
            score, latency, speed = figures["accuracy"], figures["latency"], figures["speedup"]
            assert (
                f"{100 * score['value']:.2f} % [{100 * score['low']:.2f}, "
                f"{100 * score['high']:.2f}] n = 10 000" in text
            )
            assert f"{latency['p50_ms']:g} ms" in text and f"{latency['p95_ms']:g} ms" in text
            assert f"{speed['value']:g}×" in text
    for figure in (
        "2.48 MB",
        "911 kB",
        "230 kB",
        "51.6 M",
        "20.1 M",
        "619 k",
        "226 k",
        "98 MB",
        "18 MB for the network",
        "[4.07, 4.35]",
    ):
        assert figure in text


def test_the_headline_and_its_limits(example):
    text = text_of(example)
    assert (
        "On ONNX Runtime the network is 4.2× faster and 10.8× smaller, and loses 0.31 points of "
        "top-1 accuracy." in text
    )
    assert "95 % interval [0.08, 0.54]" in text
    assert "✗ Missed by 1.2×: the size ratio on ONNX Runtime is 10.8×, asked at least 12×" in text
    assert (
        "✓ Met : the loss of accuracy on ONNX Runtime is 0.31 points, asked at most 0.5 points"
        in text
    )
    assert "✓ Met : the speed-up on ONNX Runtime is 4.2×, asked at least 4×" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"speedup": 0.8}, "is 1.25× slower and 10.8× smaller, and loses"),
        ({"size_ratio": None}, "is 4.2× faster, and loses 0.31 points"),
        (
            {"accuracy_drop": -0.002, "accuracy_drop_interval": [-0.003, -0.001]},
            "and gains 0.20 points of top-1 accuracy.",
        ),
        (
            {"accuracy_drop": 0.001, "accuracy_drop_interval": [-0.001, 0.003]},
            "loses 0.10 points of top-1 accuracy, a difference within the noise of the test.",
        ),
        (
            {"accuracy_drop": 0.0, "accuracy_drop_interval": [0.0, 0.0]},
            "and loses no top-1 accuracy.",
        ),
        ({"speedup": None, "size_ratio": None}, "the network loses 0.31 points"),
        ({"runtime": None}, "The network is 4.2× faster"),
    ],
)
def test_the_headline_says_what_the_figures_say(example, change, sentence):
    example["result"].update(change)
    assert sentence in text_of(example)


def test_a_near_miss_is_not_rounded_away(example):
    example["limits"] = [
        {"name": "accuracy_drop", "limit": 0.005, "value": 0.00503, "met": False, "runtime": None}
    ]
    assert (
        "Missed by 0.003 points: the loss of accuracy is 0.503 points, asked at most 0.5 points"
        in text_of(example)
    )


def test_a_limit_that_was_not_measured_is_neither_met_nor_missed(example):
    example["limits"] = [
        {"name": "speedup", "limit": 4, "value": None, "met": None, "runtime": "openvino"}
    ]
    text = text_of(example)
    assert "Not measured : the speed-up on OpenVINO, asked 4×" in text
    assert "Met" not in text and "Missed" not in text


def test_a_metric_that_is_no_share_is_not_a_percentage(example):
    for stage in example["stages"]:
        for figures in stage["runtimes"].values():
            figures["accuracy"].update(
                metric="psnr", binary=False, value=31.24, low=31.1, high=31.38
            )
    text = text_of(example)
    assert (
        "31.24 [31.1, 31.38] n = 10 000" in text
        and "loses 0.0031 psnr" in text
        and "3124" not in text
    )


def test_nothing_is_loaded_from_elsewhere(example):
    page = reports.render(example)
    assert (
        "http" not in page
        and "//" not in page.split("</style>")[1]
        and "url(" not in page
        and "@import" not in page
    )
    for tag, attributes in Page(page).tags:
        assert tag not in ("script", "link", "img", "iframe", "a", "base", "object")
        assert not {"src", "href", "xlink:href", "srcset", "style"} & set(attributes)
        assert not any(a.startswith("on") for a in attributes)


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
    assert "alert(" in page and "<script" not in page and "\x00" not in page
    assert not [t for t, _ in Page(page).tags if t == "script"]
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
    "quantization": "Quantisation",
    "verification": "Does the runtime compute the same?",
}
SECTIONS |= {"profile": "Where the time goes", "training": "Training", "recipe": "The recipe"}


@pytest.mark.parametrize(("key", "title"), SECTIONS.items())
def test_a_missing_section_is_left_out_and_nothing_else(example, key, title):
    before = headings(example)
    del example[key]
    assert headings(example) == [h for h in before if h != title]


def small(value):
    """The same report with at most two entries in each list."""
    if isinstance(value, dict):
        return {k: small(v) for k, v in value.items()}
    return [small(v) for v in value[:2]] if isinstance(value, list) else value


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
            assert "None" not in page.split("</style>")[1].split("The recipe")[0], path
            tried += 1
    assert tried > 300


def test_write_leaves_both_files(example, tmp_path):
    page = reports.write(example, tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8")) == example
    assert page.read_text(encoding="utf-8") == reports.render(example)
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_a_report_that_is_not_json_leaves_no_page(example, tmp_path):
    example["timings"]["prune"] = float("nan")
    with pytest.raises(ValueError):
        reports.write(example, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bars_are_as_long_as_their_values():
    rows = [
        {
            "name": "a",
            "value": "",
            "bars": [{"value": v, "class": "s0"} for v in (8.0, 2.0, 0.0, None, -1.0)],
        }
    ]
    drawn = ElementTree.fromstring(svg.bars(rows, "label"))
    assert [r.get("width") for r in drawn.iter("rect") if "bar" in r.get("class")] == [
        "100%",
        "25%",
        "0%",
        "0%",
        "0%",
    ]
    to_scale = ElementTree.fromstring(svg.bars(rows, "label", most=16.0))
    assert [r.get("width") for r in to_scale.iter("rect") if "bar" in r.get("class")][:2] == [
        "50%",
        "12.5%",
    ]


def test_both_columns_of_bars_are_to_one_scale():
    page = sections.channels(
        [{"layer": f"l{i}", "before": 10 * (i + 1), "after": 5} for i in range(8)]
    )
    assert page.count('class="bars"') == 2
    shares = [
        float(w) for w in re.findall(r'width="([\d.]+)%" height="8" class="bar before"', page)
    ]
    assert shares == pytest.approx([100 * (i + 1) / 8 for i in range(8)])


def test_scatter_puts_points_where_they_belong():
    point = {"label": "a", "x": 1.0, "y": 0.5, "low": 0.0, "high": 1.0, "title": "t"}
    other = {**point, "label": "b", "x": 0.5, "y": 0.25}
    drawn = ElementTree.fromstring(svg.scatter([point, other], 0, [point, other], "x", "y"))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in drawn.iter("circle")]
    # x: 0 ... 1.1 on 48 ... 350; y: -0.08 ... 1.08 on 212 ... 26
    assert circles[0] == pytest.approx((48 + 302 / 1.1, 212 - 186 * 0.58 / 1.16), abs=1e-3)
    assert circles[1] == pytest.approx((48 + 302 * 0.5 / 1.1, 212 - 186 * 0.33 / 1.16), abs=1e-3)
    whisker = next(p.get("d") for p in drawn.iter("path"))
    assert [float(v) for v in re.match(r"M\S+ (\S+)V([\d.]+)", whisker).groups()] == pytest.approx(
        [212 - 186 * 0.08 / 1.16, 212 - 186 * 1.08 / 1.16], abs=1e-3
    )


def test_labels_of_near_points_do_not_overlap():
    points = [
        {
            "label": f"label {i}",
            "x": 0.5 + 0.01 * i,
            "y": 0.9 + 0.001 * i,
            "low": None,
            "high": None,
            "title": "",
        }
        for i in range(5)
    ]
    far = {"label": "far", "x": 1.0, "y": 1.0, "low": None, "high": None, "title": ""}
    drawn = ElementTree.fromstring(svg.scatter([*points, far], 0, [*points, far], "x", "y"))
    boxes = [
        (float(t.get("x")), float(t.get("y")), len(t.text) * svg.GLYPH)
        for t in drawn.iter("text")
        if t.get("class") == "name"
    ]
    assert len(boxes) == 6
    marks = {
        (round(float(c.get("cx")), 2), round(float(c.get("cy")), 2)) for c in drawn.iter("circle")
    }
    leaders = [line for line in drawn.iter("line") if line.get("class") == "leader"]
    assert (
        leaders
        and {(round(float(a.get("x1")), 2), round(float(a.get("y1")), 2)) for a in leaders} <= marks
    )
    for i, (x, y, w) in enumerate(boxes):
        assert x >= svg.LEFT and x + w <= svg.WIDTH
        for x2, y2, w2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or abs(y - y2) >= 13


def test_histogram_heights_thresholds_and_the_clipped_part():
    # 4 bins of [-2, 2] on 1 ... 159, so a unit is 39.5 wide; log(1 + c) is 0, ln 8, ln 2 (a third
    # of it), 0 on 74 ... 6
    drawn = ElementTree.fromstring(svg.histogram([0, 7, 1, 0], -2.0, 2.0, [-0.5, 0.5], "label"))
    paths = {p.get("class"): p.get("d") for p in drawn.iter("path")}
    assert paths["kept"] == "M60.25 74V6H80V74ZM80 74V51.333H99.75V74Z"
    assert paths["clipped"] == "M40.5 74V6H60.25V74ZM99.75 74V51.333H119.5V74Z"
    assert [p.get("d") for p in drawn.iter("path") if p.get("class") == "threshold"] == [
        "M60.25 2V74",
        "M99.75 2V74",
    ]
    outside = [(float(r.get("x")), float(r.get("width"))) for r in drawn.iter("rect")]
    assert sorted(outside) == [(1.0, 59.25), (99.75, 59.25)]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0, 255], [3.0]),
        ([0, 127], [3.0]),
        ([-127, 127], [-3.0, 3.0]),
        ([-128, 127], [-3.0, 3.0]),
        ([], [-3.0, 3.0]),
        (None, [-3.0, 3.0]),
    ],
)
def test_integers_from_zero_have_one_threshold(levels, expected):
    assert (
        sections.thresholds({"threshold": [0.5, 3.0, None], "levels": levels}) == expected
    )  # of many channels, the largest
    assert sections.thresholds({"threshold": None, "levels": levels}) == []


def test_a_gap_in_a_curve_stays_a_gap():
    drawn = ElementTree.fromstring(
        svg.lines([{"name": "loss", "values": [1.0, 2.0, None, 3.0, 4.0]}], "epoch", "loss")
    )
    assert [len(p.get("points").split()) for p in drawn.iter("polyline")] == [2, 2]
    assert [float(c.get("cx")) for c in drawn.iter("circle")] == pytest.approx(
        [48, 48 + 302 / 4, 48 + 302 * 3 / 4, 350]
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.89, [0, 0.2, 0.4, 0.6, 0.8]),
        (92.2, 94.8, [93, 94]),
        (-3, 3, [-2, 0, 2]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_profiles_keep_the_order_of_execution():
    before = [
        {"name": n, "milliseconds": 1.0, "operator": "Conv", "int8": False}
        for n in ("a", "b", "c", "c")
    ]
    after = [
        {"name": n, "milliseconds": 0.5, "operator": "QLinearConv", "int8": n != "q"}
        for n in ("q", "a", "r", "c")
    ]
    rows = sections.layer_times(before, after)
    assert [r["name"] for r in rows] == ["q", "a", "r", "b", "c", "c"]
    assert (
        rows[1]["value"].replace("\u00a0", " ") == "1 → 0.5 ms int8"
        and rows[1]["bars"][1]["class"] == "s2"
    )
    assert (
        rows[0]["value"].replace("\u00a0", " ") == "– → 0.5 ms float"
        and rows[0]["bars"][1]["class"] == "s1"
    )
    assert rows[5]["bars"][1]["value"] is None


def test_verification_names_the_first_departure(example):
    text = text_of(example)
    assert (
        "First departure at layer3.0.conv2: the runtime fuses the addition and rounds once" in text
    )
    assert (
        "Same answer on 99.80 % of the samples [99.27, 99.95] n = 1 000; output SQNR 38.1 dB"
        in text
    )
    assert "13 layers, off by at most 1" in text and "13 layers, off by at most 3" in text


# Numbers and the recipe


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.size(2480000), "2.48 MB"),
        (units.size(999_600), "1 MB"),
        (units.count(51_600_000), "51.6 M"),
        (units.count(None), "–"),
        (units.milliseconds(0.81), "0.81 ms"),
        (units.milliseconds(1234.5), "1 234 ms"),
        (units.milliseconds(float("nan")), "–"),
        (units.digits(-0.5), "−0.5"),
        (units.digits(3.14e-7), "3.1e−7"),
        (units.points(0.0031), "0.31"),
        (units.seconds(71.2), "71.2 s"),
        (units.seconds(725), "12 min 5 s"),
        (units.seconds(7380), "2 h 03 min"),
        (units.span([0.1, 0.2, None]), "0.1 … 0.2"),
        (units.interval(None, 1.0, units.digits), ""),
        (sections.exact_share(0.999991), "> 99.99 %"),
        (sections.exact_share(1.0), "100.00 %"),
    ],
)
def test_numbers_are_for_people(shown, expected):
    assert shown.replace("\u00a0", " ") == expected


def test_the_recipe_reads_back(example):
    yaml = pytest.importorskip("yaml")
    tricky = {
        "a": ["no", 1, None, {"b": "1.0", "c": {}}],
        "on": "yes",
        "d: e": "f: g",
        "h": "a:b",
        "i": {"j": [[1, 2], []]},
        "k": "",
        "l": "x#y",
        "m": "dots...",
    }
    for recipe in (example["recipe"], tricky):
        assert yaml.safe_load(html.as_yaml(recipe)) == recipe


def test_what_placement_by_time_found_is_said():
    times = {"float": 2.0, "all_quantized": 2.5, "placed": 1.5}
    said = sections.placed(
        {"runtime": "onnxruntime", "layers": ["a.weight", "b.weight"], "milliseconds": times}
    )
    assert (
        "a.weight, b.weight stay in float. One call on ONNX Runtime: float 2 ms, all quantised "
        "2.5 ms, as it is 1.5 ms." in said.replace("\xa0", " ")
    )
    assert (
        "no layer stays in float"
        in sections.placed({"runtime": "onnxruntime", "layers": [], "milliseconds": None})
        and sections.placed({}) == ""
    )
