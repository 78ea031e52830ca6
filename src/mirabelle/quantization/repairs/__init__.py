"""What mends a quantized network without labels."""
