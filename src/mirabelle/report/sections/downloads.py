"""What to take from a run, and how to use it: files, the recipe, and a few lines of code."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from mirabelle.report.parts import child, fold, runtime_name, section
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
ORT_ANDROID = """// in build.gradle.kts:
// implementation("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.FloatBuffer

val environment = OrtEnvironment.getEnvironment()
val session = environment.createSession(assets.open("{name}").readBytes())

fun run(pixels: FloatArray): FloatArray {{
    val input = OnnxTensor.createTensor(environment, FloatBuffer.wrap(pixels), longArrayOf({shape}))
    return input.use {{
        session.run(mapOf(session.inputNames.first() to it)).use {{ outputs ->
            (outputs[0] as OnnxTensor).floatBuffer.let {{ b -> FloatArray(b.remaining(), b::get) }}
        }}
    }}
}}"""
ON_ANDROID = {
    "onnxruntime": ORT_ANDROID,
    "onnxruntime-mobile": ORT_ANDROID,
    "litert": """// build.gradle.kts: implementation("com.google.ai.edge.litert:litert:1.4.0")
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

val bytes = assets.open("{name}").readBytes()
val model = ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder())
val network = Interpreter(model.apply {{ put(bytes); rewind() }})

fun run(pixels: FloatArray): FloatArray {{
    val input = ByteBuffer.allocateDirect(4 * pixels.size).order(ByteOrder.nativeOrder())
    input.asFloatBuffer().put(pixels)
    val size = network.getOutputTensor(0).numElements()
    val output = ByteBuffer.allocateDirect(4 * size).order(ByteOrder.nativeOrder())
    network.run(input, output)
    return FloatArray(size).also {{ output.rewind(); output.asFloatBuffer().get(it) }}
}}""",
    "executorch": """// build.gradle.kts: implementation("org.pytorch:executorch-android:1.0.0")
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

val network = Module.load(path) // the path of {name} after it was copied out of the assets

fun run(pixels: FloatArray): FloatArray {{
    val input = Tensor.fromBlob(pixels, longArrayOf({shape}))
    return network.forward(EValue.from(input))[0].toTensor().dataAsFloatArray
}}""",
}


def downloads(report: dict) -> str:
    """Links to the files of the run's folder, the recipe, and code that uses them; nothing for a
    report that does not name its files.
    """
    files = {
        str(folder): [n for n in names if isinstance(n, str) and FILE.fullmatch(n)]
        for folder, names in child(report, "files").items()
        if FILE.fullmatch(str(folder)) and isinstance(names, list)
    }
    if not any(files.values()):
        return ""
    rows = [("figures", _links(".", ["report.json"])), ("recipe", _recipe(report.get("recipe")))]
    rows += [(_name(folder), _links(folder, names)) for folder, names in files.items() if names]
    listed = "".join(element("dt", escape(k)) + element("dd", v) for k, v in rows if v)
    note = "Links lead to the files beside this page, in the folder of the run."
    return section(
        "Downloads", note, element("dl", listed), *_python(report, files), *_android(report, files)
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


def _python(report: dict, files: dict[str, list[str]]) -> list[str]:
    blocks = []
    name = str(child(report, "network").get("name") or "")
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


def on_android(runtime: str, name: str, shape: list[str]) -> str:
    """Kotlin that opens a file of the app's assets and runs it."""
    return ON_ANDROID[runtime].format(name=name, shape=", ".join(shape))


def _android(report: dict, files: dict[str, list[str]]) -> list[str]:
    inputs = child(report, "network").get("inputs")
    first = inputs[0] if isinstance(inputs, list) and inputs else {}
    sizes = first.get("shape") if isinstance(first, dict) else None
    shape = [str(s) for s in sizes if isinstance(s, int)] if isinstance(sizes, list) else []
    return [
        _code(
            f"The file on Android, {runtime_name(runtime)}",
            "Kotlin; put the file into src/main/assets",
            on_android(runtime, files[runtime][0], shape),
        )
        for runtime in ON_ANDROID
        if files.get(runtime)
    ]
