"""Experiments on trained concepts: `python -m benchmarks.experiments NAME -o outputs/…`; see `__main__`."""
