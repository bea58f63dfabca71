"""Models on the way from and to other programs."""
