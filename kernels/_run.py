"""March a rule on the CPU: choose the schedule, share it out to threads."""

from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdiff.kernels._edges import ABSENT, BOUNDED, is_seeing, make_edges
from fastdiff.kernels._fields import Cells, lowered
from fastdiff.kernels._jit import tell_apart
from fastdiff.kernels._march import (
    LANES,
    SLIDING,
    check_fields,
    components_of,
    kept_by,
    map_fields,
    run_resident,
    run_stream,
)
from fastdiff.kernels._memory import empty_like
from fastdiff.kernels._threads import default_threads, scratch, together
from fastdiff.kernels._wide import march_wide, near_of


class Plan(NamedTuple):
    """How a march is cut up: tiles per sample along each axis, and time levels per sweep."""

    schedule: str  # "resident" or "stream"
    tiles: tuple[int, int, int]
    depth: int


def plan_for(shape, kinds, itemsize: int, threads: int, steps: int, kept: int = 0, fields: int = 0) -> Plan:
    """The plan for a state of shape (B, C, n0, n1, n2) on axes of the given kinds; the last `kept` of C are kept.

    The rule reads `fields` numbers of every cell.
    """
    B, C, n0, n1, n2 = shape
    if n0 == n1 == 1:
        return _plan_line(B, C, n2, kinds, itemsize, threads, steps)
    flat = n1 == 1 and kinds[1] == ABSENT
    near, planes = C - kept, (n0 + 2) * (1 if flat else n1 + 2)
    copies = near * (n0 + 5) if flat and near == SLIDING else 2 * near * planes  # one copy, or two
    resident = (copies + kept * planes) * (n2 + 2 * LANES) * itemsize
    if resident <= RESIDENT_BYTES and (B >= threads or resident <= SMALL_BYTES):
        return Plan("resident", (1, 1, 1), max(steps, 1))
    return _plan_stream(shape, kinds, itemsize, threads, steps, kept, fields)


def _cache(level: int, otherwise: int) -> int:
    """Bytes of a cache for data: of level 1 and 2 a core's, of level 3 what its cores share."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            about = {name: (folder / name).read_text().strip() for name in ("level", "type", "size")}
        except OSError:
            continue
        number, unit = about["size"][:-1], about["size"][-1:]
        if about["level"] == str(level) and about["type"] != "Instruction" and number.isdigit() and unit in "KM":
            return int(number) << (10 if unit == "K" else 20)
    return otherwise


FIRST, SECOND, THIRD = _cache(1, 32 << 10), _cache(2, 512 << 10), _cache(3, 8 << 20)
RESIDENT_BYTES = SECOND // 2  # what a sample takes of a core's second-level cache
SMALL_BYTES = 1 << 16  # below this, sharing one sample between threads does not pay
LINE_BYTES = FIRST * 5 // 12  # one copy of a block of a long line, of two
ROW = 1024  # numbers in a row of a 2-D tile, all components together
WITH_FIELDS = FIRST // 12  # bytes of it where the rule reads numbers of every cell


def _plan_line(B, C, n, kinds, itemsize, threads, steps):
    block = LINE_BYTES // (itemsize * C)
    if n <= 2 * block or (B >= threads and 2 * C * n * itemsize <= RESIDENT_BYTES):
        return Plan("resident", (1, 1, 1), max(steps, 1))
    return Plan("resident", (1, 1, ceil(n / block)), min(max(steps, 1), max(64, block // 20)))


def _plan_stream(shape, kinds, itemsize, threads, steps, kept, fields):
    """Tiles as large as the caches let them be: the halos of `depth` cells, or of `steps`, are computed twice."""
    B, C, n0, n1, n2 = shape
    if n1 == 1 and kinds[1] == ABSENT:
        c2 = ceil(n2 * C / ROW)
        if fields:  # their rows want a place in the first cache, too
            c2 = max(c2, round(n2 * (C - kept) * itemsize / WITH_FIELDS))
        ring = (4 * (C - kept) + 4 / 3 * kept + fields) * (ceil(n2 / c2) + 48) * itemsize  # of one level
        depth, c1 = int(min(max(SECOND * 7 // 8 // ring, 8), 24)), 1
        tall, highest = 20 * min(depth, max(steps, 1)), 512
    else:
        c2 = ceil(n2 * itemsize * C / 1024)
        rows, depth = (128, 8) if _ring(C, n2 / c2, 128, 8, itemsize) * threads <= THIRD // 2 else (48, 4)
        c1, tall, highest = ceil(n1 / rows), 16 * depth, 256
    shares = ceil(min(max(n0 // tall, threads), 2 * threads) / B)  # a thread that is held up leaves work to others
    c0 = max(ceil(n0 / highest), min(shares, ceil(n0 / depth)), 1)
    return Plan("stream", (c0, c1, c2), depth)


def _ring(C, width, rows, depth, itemsize) -> float:
    """Bytes of all rings of a 3-D tile."""
    return 4 * C * depth * (rows + 2 * depth + 2) * (width + 2 * depth + 48) * itemsize


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


def _fields_of(rule) -> int:
    """How many numbers of every cell a rule reads, those of rules inside included."""
    found = []
    map_fields(rule, lambda field: found.append(field) if isinstance(field, Cells) else None)
    return len(found)


def _memory(plan, shape, kinds, kept):
    """Elements of scratch memory a worker needs."""
    _, C, n0, n1, n2 = shape
    width = ceil(n2 / plan.tiles[2]) + 2 * plan.depth * (plan.tiles[2] > 1 or plan.schedule == "stream") + 5 * LANES
    if plan.schedule == "resident":
        g0, g1 = 2 * (kinds[0] != ABSENT), 2 * (kinds[1] != ABSENT)
        return 8 * C + LANES + 2 * C * (n0 + g0) * (n1 + g1) * width
    rows = ceil(n1 / plan.tiles[1]) + (0 if kinds[1] == ABSENT else 2 * (plan.depth + 1))
    planes = plan.depth * (C - kept) * 4 + kept * max(4, 2 * (plan.depth + 2))
    return 8 * C * (plan.depth + 1) + LANES + planes * rows * width


def space_of(shape):
    """The shape (B, C, n0, n1, n2) of a state (B, C, *grid) of a 1-D to 3-D grid."""
    grid = shape[2:]
    return (*shape[:2], *{1: (1, 1, *grid), 2: (grid[0], 1, grid[-1]), 3: grid}[len(grid)])


def _check(rule, u, edges, out, work):
    """Refuse what the compiled code, which checks nothing, would get wrong."""
    tell_apart(rule)
    components = components_of(type(rule))
    if u.shape[1] != components:
        raise ValueError(f"{type(rule).__qualname__} has {components} components, but u has shape {u.shape}: expected "
                         f"(batch, {components}, *grid)")
    if edges.reals.dtype != u.dtype or int(edges.ints[6]) not in (1, len(u)) or edges.ints[7] != components:
        raise ValueError(f"the edges are for {edges.ints[6]} samples of {edges.ints[7]} components in "
                         f"{edges.reals.dtype}, but u has shape {u.shape} in {u.dtype}")
    for name, array in (("u", u), ("out", out), ("work", work)):
        if array is not None and not (array.shape == u.shape and array.dtype == u.dtype and array.flags.c_contiguous):
            raise ValueError(f"{name} must be a C-contiguous array of shape {u.shape} and dtype {u.dtype}")
    if any(a is not None and np.may_share_memory(a, b) for a, b in ((out, u), (work, u), (work, out))):
        raise ValueError("u, out and work must not share memory")
    check_fields(rule, u)


def march(rule, u, edges, steps, *, step=0, out=None, work=None, threads=None, plan=None):
    """Apply `steps` time steps of a rule to `u` (B, C, *grid), C-contiguous, on the CPU.

    `edges` describes the boundaries; `step` is the index of the first time level in its tables. `u` is left as it is;
    the result is written to `out`. `work` is a third array of the same kind, allocated when needed and not given.
    """
    out = empty_like(u) if out is None else out
    _check(rule, u, edges, out, work)
    if steps < 1:
        out[...] = u
        return out
    shape = space_of(u.shape)
    if near_of(rule) != "star" or is_seeing(edges):
        return march_wide(rule, u, edges, steps, step, out, threads or default_threads(), shape)
    kinds = tuple(edges.ints[:3].tolist())
    threads = default_threads() if threads is None else threads
    kept = kept_by(type(rule))
    plan = _fit(plan or plan_for(shape, kinds, u.itemsize, threads, steps, kept, _fields_of(rule)), shape)
    halo = 1 if plan.schedule == "resident" and plan.tiles[2] == 1 else plan.depth + 1
    rule = lowered(rule, kinds, shape[2:], halo, edges.clock)
    sweeps = -(-steps // plan.depth)
    here, final = u.reshape(-1), out.reshape(-1)
    spare = final if sweeps == 1 else (empty_like(here) if work is None else work.reshape(-1))
    first, second = (final, spare) if sweeps & 1 else (spare, final)
    tiles = shape[0] * plan.tiles[0] * plan.tiles[1] * plan.tiles[2]
    progress = np.zeros(1 + tiles, np.int64)
    memory = _memory(plan, shape, kinds, kept)

    def task():
        space = scratch(memory, u.dtype)
        run, cuts = (run_resident, plan.tiles[2:]) if plan.schedule == "resident" else (run_stream, plan.tiles)
        run(rule, edges, shape, here, first, second, space, progress, *cuts, plan.depth, steps, step)

    together(task, min(threads, tiles))
    return out


def schedule_of(shape, itemsize, threads=None, kept=0) -> str:
    """The schedule that a march of a state (B, C, *grid) will use, `kept` of C kept."""
    space = space_of(shape)
    kinds = tuple(ABSENT if n == 1 else BOUNDED for n in space[2:])
    return plan_for(space, kinds, itemsize, threads or default_threads(), 1, kept).schedule


def prepare(rule, dtype, components, ndim, schedule):
    """Compile a rule for one dtype and schedule, or load it from disk, by a step on a tiny grid."""
    def small(field):
        if isinstance(field, Cells):
            return Cells(np.ones([4] * ndim), ndim, dtype, field.handed)
        return field[:1] if isinstance(field, np.ndarray) else field

    first = map_fields(rule, small)
    u = np.zeros((1, components, *[4] * ndim), dtype)
    edges = make_edges(u.shape[2:], [True] * ndim, dtype, components=components)
    march(first, u, edges, 1, threads=1, plan=Plan(schedule, (1, 1, 1), 1))
