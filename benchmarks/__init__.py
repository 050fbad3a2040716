"""Speed and memory beside a hand-written torch loop: ``make bench``."""
