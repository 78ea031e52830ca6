"""What to take from a run, and how to use it: files, the recipe, and a few lines of code."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from mirabelle.report.parts import fold, listing, runtime_name, section
from mirabelle.report.schema import Preprocessing, Report, Tensor
from mirabelle.report.sections.in_apps import ON_ANDROID, ON_IOS, on_android, on_ios
from mirabelle.report.sections.recipe import as_yaml
from mirabelle.report.svg import element, escape

FILE = re.compile(r"\w[\w.-]*")  # what a link may lead to: never out of the run's folder

COLLECTIONS = ("timm", "hf", "torchvision", "transformers")  # names of networks, not of modules

IN_PYTHON = {
    "onnxruntime": """import onnxruntime

session = onnxruntime.InferenceSession("{path}")
outputs = session.run(None, {{session.get_inputs()[0].name: x}})  # x: a float32 NumPy array""",
    "openvino": """import openvino

network = openvino.Core().compile_model("{path}", "CPU")
outputs = network(x)  # x: a float32 NumPy array""",
    "litert": """from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("{path}")
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)  # x: a NumPy array
interpreter.invoke()
output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])""",
}


def downloads(report: Report) -> str:
    """Links to the files of the run's folder, the recipe, and code that uses them; nothing for a
    report that does not name its files.
    """
    files = {
        str(folder): [n for n in names if isinstance(n, str) and FILE.fullmatch(n)]
        for folder, names in report.files.items()
        if FILE.fullmatch(str(folder)) and isinstance(names, list)
    }
    if not any(files.values()):
        return ""
    rows = [("figures", _links(".", ["report.json"])), ("recipe", _recipe(report.recipe))]
    rows += [(_name(folder), _links(folder, names)) for folder, names in files.items() if names]
    listed = "".join(element("dt", escape(k)) + element("dd", v) for k, v in rows if v)
    note = "Links lead to the files beside this page, in the folder of the run."
    return section(
        "Downloads",
        note,
        element("dl", listed),
        *_tensors(report, files),
        *_python(report, files),
        *_in_apps(report, files),
    )


def _name(folder: str) -> str:
    return "network, for mb.load" if folder == "model" else runtime_name(folder)


def _links(folder: str, names: list[str]) -> str:
    paths = [name if folder == "." else f"{folder}/{name}" for name in names]
    return ", ".join(element("a", escape(p), href=quote(p), download="") for p in paths)


def _recipe(value: Any) -> str:
    """The recipe as a download that is inside of the page."""
    if not value:
        return ""
    data = f"data:text/yaml;charset=utf-8,{quote(as_yaml(value) + chr(10), safe='')}"
    return element("a", "recipe.yaml", href=data, download="recipe.yaml")


def _code(title: str, note: str, text: str) -> str:
    return fold(title, note, element("pre", element("code", escape(text)), tabindex=0), False)


def _python(report: Report, files: dict[str, list[str]]) -> list[str]:
    blocks = []
    name = str(report.network.name or "")
    module, _, maker = name.partition(":")
    mine = re.fullmatch(r"[\w.]+", module) and maker.isidentifier() and module not in COLLECTIONS
    if files.get("model") and mine:
        text = (
            f"import mirabelle as mb\nfrom {module} import {maker}\n\n"
            f'network = mb.load("model", {maker}())  # a torch.nn.Module: mb.fit trains it further'
        )
        blocks.append(_code("The network in Python", "to train, cut or quantize it further", text))
    for runtime, text in IN_PYTHON.items():
        if names := files.get(runtime):
            code = text.format(path=f"{runtime}/{names[0]}")
            blocks.append(_code(f"The file in Python, {runtime_name(runtime)}", "", code))
    return blocks


def _tensors(report: Report, files: dict[str, list[str]]) -> list[str]:
    """What each file takes and gives: names, sizes, layout, and how pictures are brought to it."""
    how = report.data.preprocessing
    blocks = []
    for runtime, found in report.handoff.items():
        if not files.get(runtime):
            continue
        rows = [
            (f"{kind} {spec.name}", _spec(spec, how))
            for kind, specs in (("input", found.inputs), ("output", found.outputs))
            for spec in specs
        ]
        if pictures := report.data.pictures:
            rows.append(("pictures", str(pictures)))
        title = f"What the file takes and gives, {runtime_name(runtime)}"
        blocks.append(fold(title, "", listing(rows), False))
    return blocks


def _spec(spec: Tensor, how: Preprocessing) -> str:
    """`float32, 1 × 3 × 224 × 224: samples, channels, height, width`."""
    sizes = spec.shape
    if sizes is None:
        return f"{spec.dtype}, of any sizes"
    shown = " × ".join("any" if s is None else str(s) for s in sizes) or "a scalar"
    nhwc = len(sizes) == 4 and how.layout == "nhwc" and sizes[-1] in (1, 3)
    axes = "samples, height, width, channels" if nhwc else "samples, channels, height, width"
    return f"{spec.dtype}, {shown}{f': {axes}' if len(sizes) == 4 else ''}"


def _in_apps(report: Report, files: dict[str, list[str]]) -> list[str]:
    sizes = (report.network.inputs[0].shape if report.network.inputs else None) or []
    shape = [str(s) for s in sizes if isinstance(s, int)]
    blocks = []
    for place, table, note, code in (
        ("Android", ON_ANDROID, "Kotlin; put the file into src/main/assets", on_android),
        ("iOS", ON_IOS, "Swift; add the file to the app's bundle", on_ios),
    ):
        for runtime in table:
            if names := files.get(runtime):
                title = f"The file on {place}, {runtime_name(runtime)}"
                blocks.append(_code(title, note, code(runtime, names[0], shape)))
    return blocks
