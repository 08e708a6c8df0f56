"""Benchmarks: kernels against their references, against strong plain loops, and against the machine's limits.

`fastdiff bench` times every kernel, after checking it; `fastdiff bench targets` measures the goals of the project.
"""


def main(args: list[str] | None = None) -> int:
    """Run `fastdiff bench`; returns the exit code."""
    import sys

    args = sys.argv[1:] if args is None else list(args)
    if args[:1] == ["targets"]:
        from fastdiff.bench import targets

        return targets.main(args[1:])
    if args[:1] == ["jet"]:
        from fastdiff.bench import jet

        return jet.main(args[1:])
    if args[:1] == ["equations"]:
        from fastdiff.bench import equations

        return equations.main(args[1:])
    if args[:1] == ["pinn"]:
        from fastdiff.bench import pinn

        return pinn.main(args[1:])
    from fastdiff.bench import kernels

    return kernels.main(args)


__all__ = ["main"]
