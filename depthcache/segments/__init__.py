"""One run's part of a cache: write it, read it, check it, mend it, remove it."""
