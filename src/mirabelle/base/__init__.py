"""What every room stands on: errors, checks, batches, files, names, progress."""
