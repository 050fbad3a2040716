"""Speed and memory beside what a user would write or use instead: ``make bench``."""
