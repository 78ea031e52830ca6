"""What repairs a quantized network without labels."""
