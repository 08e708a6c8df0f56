"""Benchmarks: kernels against references, plain loops and roofs; the project's goals; peers. `fastdiff bench`."""

from importlib import import_module

SUITES = ("adjoint", "conv", "data", "equations", "gallery", "generative", "integrators", "inverse", "jet",
          "operators", "peers", "pinn", "station", "targets", "work-precision")
# each a module of its own; anything else names kernels


def main(args: list[str] | None = None) -> int:
    """Run `fastdiff bench` with its arguments; returns an exit code."""
    import sys

    args = sys.argv[1:] if args is None else args
    if args[:1] and args[0] in SUITES:
        return import_module(f"fastdiff.bench.{args[0].replace('-', '_')}").main(args[1:])
    from fastdiff.bench import kernels

    return kernels.main(args)


__all__ = ["SUITES", "main"]
