"""Trained models at work: evaluate, predict, label."""
