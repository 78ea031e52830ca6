"""What is tried and measured: layers that fall back, repairs, placement by time."""
