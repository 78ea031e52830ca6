"""Which channels live and die together, the cut, and its proof."""
