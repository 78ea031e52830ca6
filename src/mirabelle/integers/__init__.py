"""The arithmetic of quantized networks, in NumPy alone."""
