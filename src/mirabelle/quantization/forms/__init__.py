"""The forms in which a quantized network leaves: Q/DQ, PT2E, the ONNX file that it came from."""
