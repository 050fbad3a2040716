"""Speed and memory beside a hand-written torch loop: ``python -m benchmarks``, or ``make bench``."""
