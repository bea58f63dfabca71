"""The cache's format, without I/O: names, seals, encoding, and which map lies in which shard."""
