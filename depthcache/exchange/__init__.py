"""Caches on the way to other places and other formats."""
