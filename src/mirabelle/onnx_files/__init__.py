"""ONNX files: read as networks, written from networks, and integers in them."""
