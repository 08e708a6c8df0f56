"""Benchmarks: kernels against their references, against strong plain loops, and against the machine's limits."""
