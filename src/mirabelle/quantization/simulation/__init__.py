"""The quantized network: where it rounds, its graph, its quantizers, its description."""
