"""A file in an app: Kotlin for Android and Swift for iOS, a few lines for each runtime.

They follow the documentation of each runtime; none was compiled here.
"""

from __future__ import annotations

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
ORT_IOS = """// Swift package: https://github.com/microsoft/onnxruntime-swift-package-manager
import Foundation
import OnnxRuntimeBindings

let path = Bundle.main.path(forResource: "{stem}", ofType: "{ending}")!
let environment = try ORTEnv(loggingLevel: .warning)
let session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
let (inputName, outputName) = (try session.inputNames()[0], try session.outputNames()[0])

func run(_ pixels: [Float]) throws -> [Float] {{
    let bytes = NSMutableData(bytes: pixels, length: 4 * pixels.count)
    let input = try ORTValue(tensorData: bytes, elementType: .float, shape: [{shape}])
    let outputs = try session.run(
        withInputs: [inputName: input], outputNames: [outputName], runOptions: nil)
    let found = try outputs[outputName]!.tensorData() as Data
    return found.withUnsafeBytes {{ Array($0.bindMemory(to: Float.self)) }}
}}"""
ON_IOS = {
    "onnxruntime": ORT_IOS,
    "onnxruntime-mobile": ORT_IOS,
    "litert": """// Podfile: pod 'TensorFlowLiteSwift'
import Foundation
import TensorFlowLite

let path = Bundle.main.path(forResource: "{stem}", ofType: "{ending}")!
let network = try Interpreter(modelPath: path)
try network.allocateTensors()

func run(_ pixels: [Float]) throws -> [Float] {{
    try network.copy(pixels.withUnsafeBytes {{ Data($0) }}, toInputAt: 0)
    try network.invoke()
    let found = try network.output(at: 0).data
    return found.withUnsafeBytes {{ Array($0.bindMemory(to: Float.self)) }}
}}""",
    "executorch": """// Swift package: https://github.com/pytorch/executorch, a branch swiftpm-1.0.0
import ExecuTorch
import Foundation

let path = Bundle.main.path(forResource: "{stem}", ofType: "{ending}")!
let network = Module(filePath: path)
try network.load("forward")

func run(_ pixels: [Float]) throws -> [Float] {{
    let input = Tensor<Float>(pixels, shape: [{shape}])
    let output: Tensor<Float> = try Tensor(network.forward(input))
    return output.scalars()
}}""",
}


def on_android(runtime: str, name: str, shape: list[str]) -> str:
    """Kotlin that opens a file of the app's assets and runs it."""
    return ON_ANDROID[runtime].format(name=name, shape=", ".join(shape))


def on_ios(runtime: str, name: str, shape: list[str]) -> str:
    """Swift that opens a file of the app's bundle and runs it."""
    stem, _, ending = name.rpartition(".")
    return ON_IOS[runtime].format(stem=stem, ending=ending, shape=", ".join(shape))
