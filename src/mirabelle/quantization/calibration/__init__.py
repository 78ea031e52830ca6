"""From values to grids: histograms, thresholds, sums of pairs."""
