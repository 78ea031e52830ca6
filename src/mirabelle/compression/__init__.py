"""`mb.compress`: the smallest network that holds the limits, found in one call."""
