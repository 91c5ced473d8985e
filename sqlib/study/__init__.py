"""A study's parameters and its result files: what may be said, what was found, where it came from."""
