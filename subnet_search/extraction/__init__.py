"""One run: configuration, training, run folder, result and evaluation."""
