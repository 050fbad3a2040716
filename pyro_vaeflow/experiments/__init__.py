"""Runs and their folders: settings, many runs at once, other detectors, result tables."""
