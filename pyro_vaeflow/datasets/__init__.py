"""Data sets by name, the splits that make an experiment of them, and where their files are."""
