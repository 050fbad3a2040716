"""Data sets to try detectors on, and their splits."""
