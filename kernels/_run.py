"""March a rule on the CPU: choose the schedule, share it out to threads."""

from math import ceil
from typing import NamedTuple

import numpy as np

from fastdiff.kernels._edges import ABSENT, BOUNDED, make_edges
from fastdiff.kernels._fields import Cells, lowered
from fastdiff.kernels._march import LANES, components_of, map_fields, run_resident, run_stream
from fastdiff.kernels._threads import default_threads, scratch, together


class Plan(NamedTuple):
    """How a march is cut up: tiles per sample along each axis, and time levels per sweep."""

    schedule: str  # "resident" or "stream"
    tiles: tuple[int, int, int]
    depth: int


def plan_for(shape, kinds, itemsize: int, threads: int, steps: int) -> Plan:
    """The plan for a state of shape (B, C, n0, n1, n2) on axes of the given kinds."""
    B, C, n0, n1, n2 = shape
    if n0 == n1 == 1:
        return _plan_line(B, C, n2, kinds, itemsize, threads, steps)
    resident = 2 * C * (n0 + 2) * (n1 + 2) * (n2 + 2 * LANES) * itemsize
    if resident <= RESIDENT_BYTES and (B >= threads or resident <= SMALL_BYTES):
        return Plan("resident", (1, 1, 1), max(steps, 1))
    return _plan_stream(shape, kinds, itemsize, threads)


RESIDENT_BYTES = 1 << 19  # both copies of a sample in a core's second-level cache
SMALL_BYTES = 1 << 16  # below this, sharing one sample between threads does not pay
LINE_BYTES = 12 << 10  # one copy of a block of a long line


def _plan_line(B, C, n, kinds, itemsize, threads, steps):
    block = LINE_BYTES // (itemsize * C)
    if n <= 2 * block or (B >= threads and 2 * C * n * itemsize <= RESIDENT_BYTES):
        return Plan("resident", (1, 1, 1), max(steps, 1))
    count = ceil(n / block)
    return Plan("resident", (1, 1, count), min(max(steps, 1), 64))


def _plan_stream(shape, kinds, itemsize, threads):
    B, C, n0, n1, n2 = shape
    flat = n1 == 1 and kinds[1] == ABSENT
    depth, height, rows, width = (16, 512, 1, 8192) if flat else (4, 64, 48, 1024)
    shares = max(1, ceil(2 * threads / B))  # tiles along axis 0, so that no thread waits long
    c0 = max(ceil(n0 / height), min(shares, ceil(n0 / depth)))
    return Plan("stream", (c0, ceil(n1 / rows), ceil(n2 * itemsize * C / width)), depth)


def _fit(plan, shape):
    """A plan whose halos never reach beyond the neighbouring tile."""
    depth = plan.depth
    tiles = list(plan.tiles)
    for k, n in enumerate(shape[2:]):
        tiles[k] = max(1, min(tiles[k], n))
        if tiles[k] > 1 and n // tiles[k] < depth:
            tiles[k] = max(1, n // depth)
    if plan.schedule == "resident":
        tiles[0] = tiles[1] = 1
    return Plan(plan.schedule, tuple(tiles), depth)


def _memory(plan, shape, kinds):
    """Elements of scratch memory a worker needs."""
    _, C, n0, n1, n2 = shape
    width = ceil(n2 / plan.tiles[2]) + 2 * plan.depth * (plan.tiles[2] > 1 or plan.schedule == "stream") + 5 * LANES
    if plan.schedule == "resident":
        g0, g1 = 2 * (kinds[0] != ABSENT), 2 * (kinds[1] != ABSENT)
        return 8 * C + LANES + 2 * C * (n0 + g0) * (n1 + g1) * width
    rows = ceil(n1 / plan.tiles[1]) + (0 if kinds[1] == ABSENT else 2 * (plan.depth + 1))
    return 8 * C * (plan.depth + 1) + LANES + plan.depth * C * 4 * rows * width


def space_of(shape):
    """The shape (B, C, n0, n1, n2) of a state (B, C, *grid) of a 1-D to 3-D grid."""
    grid = shape[2:]
    return (*shape[:2], *{1: (1, 1, *grid), 2: (grid[0], 1, grid[-1]), 3: grid}[len(grid)])


def _checked(rule, u, edges, out, work):
    """Refuse what the compiled code, which checks nothing, would get wrong; return the rule for every sample."""
    components = components_of(type(rule))
    if u.shape[1] != components:
        raise ValueError(f"{type(rule).__name__} has {components} components, but u has shape {u.shape}: expected "
                         f"(batch, {components}, *grid)")
    if edges.reals.dtype != u.dtype or int(edges.ints[6]) not in (1, len(u)) or edges.ints[7] != components:
        raise ValueError(f"the edges are for {edges.ints[6]} samples of {edges.ints[7]} components in "
                         f"{edges.reals.dtype}, but u has shape {u.shape} in {u.dtype}")
    for name, array in (("u", u), ("out", out), ("work", work)):
        if array is not None and not (array.shape == u.shape and array.dtype == u.dtype and array.flags.c_contiguous):
            raise ValueError(f"{name} must be a C-contiguous array of shape {u.shape} and dtype {u.dtype}")
    if any(a is not None and np.may_share_memory(a, b) for a, b in ((out, u), (work, u), (work, out))):
        raise ValueError("u, out and work must not share memory")

    def for_all(field):
        if isinstance(field, Cells):
            field.check(type(rule).__name__, u)
        if not isinstance(field, np.ndarray) or len(field) == len(u):
            return field
        if len(field) != 1:
            raise ValueError(f"{type(rule).__name__} has parameters for {len(field)} samples, but u has {len(u)}")
        return np.repeat(field, len(u), 0)

    return map_fields(rule, for_all)


def march(rule, u, edges, steps, *, step=0, out=None, work=None, threads=None, plan=None):
    """Apply `steps` time steps of a rule to `u` (B, C, *grid), C-contiguous, on the CPU.

    `edges` describes the boundaries; `step` is the index of the first time level in its tables. `u` is left as it is;
    the result is written to `out`. `work` is a third array of the same kind, allocated when needed and not given.
    """
    out = np.empty_like(u) if out is None else out
    rule = _checked(rule, u, edges, out, work)
    if steps < 1:
        out[...] = u
        return out
    shape = space_of(u.shape)
    kinds = tuple(edges.ints[:3].tolist())
    threads = default_threads() if threads is None else threads
    plan = _fit(plan or plan_for(shape, kinds, u.itemsize, threads, steps), shape)
    rule = lowered(rule, kinds, shape[2:], plan.depth + 1, edges.clock)
    sweeps = -(-steps // plan.depth)
    here, final = u.reshape(-1), out.reshape(-1)
    spare = final if sweeps == 1 else (np.empty_like(here) if work is None else work.reshape(-1))
    first, second = (final, spare) if sweeps & 1 else (spare, final)
    tiles = shape[0] * plan.tiles[0] * plan.tiles[1] * plan.tiles[2]
    progress = np.zeros(1 + tiles, np.int64)
    memory = _memory(plan, shape, kinds)

    def task():
        space = scratch(memory, u.dtype)
        run, cuts = (run_resident, plan.tiles[2:]) if plan.schedule == "resident" else (run_stream, plan.tiles)
        run(rule, edges, shape, here, first, second, space, progress, *cuts, plan.depth, steps, step)

    together(task, min(threads, tiles))
    return out


def schedule_of(shape, itemsize, threads=None) -> str:
    """The schedule that a march of a state (B, C, *grid) will use."""
    space = space_of(shape)
    kinds = tuple(ABSENT if n == 1 else BOUNDED for n in space[2:])
    return plan_for(space, kinds, itemsize, threads or default_threads(), 1).schedule


def prepare(rule, dtype, components, ndim, schedule):
    """Compile a rule for one dtype and schedule, or load it from disk, by a step on a tiny grid."""
    def small(field):
        if isinstance(field, Cells):
            return Cells(np.ones([4] * ndim), ndim, dtype)
        return field[:1] if isinstance(field, np.ndarray) else field

    first = map_fields(rule, small)
    u = np.zeros((1, components, *[4] * ndim), dtype)
    edges = make_edges(u.shape[2:], [True] * ndim, dtype, components=components)
    march(first, u, edges, 1, threads=1, plan=Plan(schedule, (1, 1, 1), 1))
