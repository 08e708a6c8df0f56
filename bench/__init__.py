"""Benchmarks: kernels against their references, against strong plain loops, and against the machine's limits.

`fastdiff bench` times every kernel, after checking it; `fastdiff bench targets` measures the goals of the project;
`peers` does the same work with other packages, `work-precision` draws error against time, `gallery` draws pictures.
"""


def main(args: list[str] | None = None) -> int:
    """Run `fastdiff bench`; returns the exit code."""
    import sys

    args = sys.argv[1:] if args is None else list(args)
    if args[:1] == ["targets"]:
        from fastdiff.bench import targets

        return targets.main(args[1:])
    if args[:1] and args[0] in ("peers", "work-precision", "gallery"):
        from importlib import import_module

        return import_module(f"fastdiff.bench.{args[0].replace('-', '_')}").main(args[1:])
    if args[:1] == ["integrators"]:
        from fastdiff.bench import integrators

        return integrators.main(args[1:])
    from fastdiff.bench import kernels

    return kernels.main(args)


__all__ = ["main"]
