"""Figures and pages, drawn from what is there: nothing here trains."""
