"""Where bytes are kept: a folder, memory, HTTP or a bucket."""
