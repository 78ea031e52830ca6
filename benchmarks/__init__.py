"""Measurements behind the documents, each a module: `python -m benchmarks.distillation`."""
