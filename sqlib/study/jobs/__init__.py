"""The jobs of a study that need no notebook: each takes runs, and leaves result files."""
