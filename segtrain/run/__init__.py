"""A training run: settings, schedule, checkpoints, log, and the loop."""
