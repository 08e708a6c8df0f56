"""A roofline model of the CUDA kernels on an H100, for machines without a GPU: predictions, not measurements.

Counted from the plan that a march would use: bytes of global memory, halos computed twice, levels in flight.
Read from ptxas (`ptx.py`): registers and shared memory, hence blocks on a multiprocessor.
Assumed: the constants below. `python -m fastdiff.bench.gpu_model` writes bench/results/gpu_model.md.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from fastdiff.bench.ptx import Resources, collect

# NVIDIA H100 SXM5 data sheet and CUDA C++ Programming Guide, compute capability 9.0
MULTIPROCESSORS = 132
CLOCK = 1.7e9  # under load; 1.98e9 at most
BANDWIDTH = 3.35e12
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 227 << 10, 2048, 32
SHARED_WIDTH = 128  # bytes of shared memory a cycle
ISSUE = 128  # instructions of a thread a cycle (4 warps)

# Instructions of one cell update besides the rule's arithmetic: moves of the planes, comparisons, addresses, branch.
OVERHEAD = {"stream": 10, "resident": 8}
FLOAT64_SLOTS = 2  # issue slots of a float64 instruction: half the rate of float32


@dataclass(frozen=True)
class Prediction:
    """One row of the table."""

    resources: Resources
    bytes_per_update: float  # of global memory, for each cell and step
    useful: float  # wanted updates / computed updates
    blocks: int  # blocks on a multiprocessor
    filled: float  # share of the multiprocessors' block places in use, averaged over the waves of blocks
    memory: float  # GCell/s, bound by global memory
    shared: float  # bound by shared memory
    issue: float  # bound by instructions
    roof: float  # GCell/s of the best kernel without time blocking

    @property
    def predicted(self) -> float:
        """The lowest of the bounds."""
        return min(self.memory, self.shared, self.issue)


def occupancy(entry: Resources) -> int:
    """Blocks of a kernel that fit on a multiprocessor at the same time."""
    threads = entry.block[0] * entry.block[1]
    warps = ceil(threads / 32)
    per_warp = ceil(entry.registers * 32 / 256) * 256
    by_registers = REGISTERS // per_warp // warps
    by_shared = SHARED // (entry.shared + 1024)  # 1 KB of every block is the system's
    return min(by_registers, by_shared, THREADS // threads, BLOCKS)


def tile_ranges(n: int, tiles: int, halo: int, bounded: bool = True):
    """(wanted, read) cells of every tile along an axis."""
    for t in range(tiles):
        lo, hi = t * n // tiles, (t + 1) * n // tiles
        low, high = lo - halo, hi + halo
        if bounded:
            low, high = max(low, 0), min(high, n)
        yield hi - lo, high - low


def traffic(plan, space, itemsize: int, steps: int) -> float:
    """Bytes of global memory for each cell update: what the blocks read, halos included, and what they write."""
    _, C, n0, n1, n2 = space
    depth = min(plan.depth, steps)
    halos = (depth, depth if plan.tiles[1] > 1 else 0, depth if plan.tiles[2] > 1 else 0)
    if plan.schedule == "resident":
        halos = (0, 0, halos[2])
    read = 1
    for n, tiles, halo in zip((n0, n1, n2), plan.tiles, halos):
        read *= sum(r for _, r in tile_ranges(n, tiles, halo))
    cells = n0 * n1 * n2
    return (read + cells) * C * itemsize / (cells * depth)


def computed_per_update(plan, space) -> float:
    """Updates that threads spend issue slots on, for each wanted one: halos, idle threads, the run-up of the levels."""
    _, _, n0, n1, n2 = space
    threads = plan.block[0] * plan.block[1] * plan.tiles[1] * plan.tiles[2]
    if plan.schedule == "resident":
        rows = {True: 1, False: (n0 + 2) * (n1 + 2 if n1 > 1 else 1)}[n0 == n1 == 1]
        return rows * sum(r + 2 for _, r in tile_ranges(n2, plan.tiles[2], plan.depth * (plan.tiles[2] > 1))) / (
            n0 * n1 * n2)
    rows = n0 + plan.tiles[0] * (plan.depth - 1)  # level l computes 2 (depth - 1 - l) rows more than are wanted
    return threads * rows / (n0 * n1 * n2)


def predict(entry: Resources, flops: float, steps: int = 1000) -> Prediction:
    """Bounds of one kernel on the grid it was compiled for; small grids come in a batch that fills the device."""
    from fastdiff.kernels import _march_cuda as march

    ndim, C, size = len(entry.shape), entry.components, 4 if entry.dtype == "float32" else 8
    space = (1, C, *{1: (1, 1, *entry.shape), 2: (entry.shape[0], 1, entry.shape[-1]), 3: entry.shape}[ndim])
    plan = march.plan_cuda(space, ndim, size, steps, MULTIPROCESSORS, fields=entry.fields)
    blocks = occupancy(entry)
    places, wanted = MULTIPROCESSORS * blocks, plan.tiles[0] * plan.tiles[1] * plan.tiles[2]
    if plan.schedule == "resident" and plan.tiles[2] == 1:
        wanted = places  # a batch
    filled = wanted / (ceil(wanted / places) * places)
    busy = MULTIPROCESSORS * filled if wanted > places else min(wanted, MULTIPROCESSORS)  # busy multiprocessors
    computed = computed_per_update(plan, space)
    bytes_per_update = traffic(plan, space, size, steps) + entry.fields * size * computed
    reads = 7 if plan.schedule == "resident" else 2 * (ndim - 1)
    cycles_shared = (reads + 1) * C * size / SHARED_WIDTH
    slots = flops * (FLOAT64_SLOTS if size == 8 else 1) + OVERHEAD[plan.schedule] + (reads + 1) * C
    rate = busy * CLOCK / computed / 1e9
    return Prediction(entry, bytes_per_update, 1 / computed, blocks, filled, BANDWIDTH / bytes_per_update / 1e9,
                      rate / cycles_shared, rate * ISSUE / slots, BANDWIDTH / (2 * C * size) / 1e9)


def rows() -> list[Prediction]:
    """Predictions of every kernel that marches and dtype, compiled for sm_90."""
    from fastdiff.kernels import discover

    kernels = discover()
    return [predict(entry, kernels[entry.kernel].flops_per_cell) for entry in collect()
            if entry.capability == "sm_90" and entry.marched and not entry.nonlinear]


HEADER = f"""# GPU kernels: a model, not a measurement

Nothing on this page was timed: no GPU was at hand. `python -m fastdiff.bench.gpu_model` makes it.

* Counted from the launch plan of 1000 steps: bytes of global memory per cell update and step (reads with halos, one
  write, over the levels of a launch; a rule's numbers of every cell as if no cache helped) and the useful share of
  the updates that threads compute.
* Read from ptxas for sm_90: registers, shared memory, spills; from these the blocks on a multiprocessor.
* Bounds in GCell/s (one update of a cell with all its components): memory = {BANDWIDTH / 1e12:.2f} TB/s over the
  bytes; shared = {SHARED_WIDTH} bytes a cycle on each of {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9:.1f} GHz;
  issue = {ISSUE} thread instructions a cycle, counting the rule's arithmetic (float64 twice), shared memory
  accesses and {OVERHEAD["stream"]} (stream) or {OVERHEAD["resident"]} (resident) instructions of bookkeeping, which
  is an estimate.
* Predicted = the lowest bound. It leaves out latency, barriers and launches, so it is an upper estimate; kernels of
  this kind have reached 16 to 89 % of such a model in print (AN5D, CGO 2020).
* Roof = an ideal kernel that reads and writes every cell once a step.
* Small grids stand for a batch that fills the device: all their steps run in one launch.
"""


def table(predictions) -> str:
    """Markdown of all predictions."""
    titles = ("kernel", "grid", "schedule", "dtype", "levels a launch", "block", "B/update", "regs", "spills",
              "smem KB", "blocks/SM", "threads/SM", "places filled", "useful", "memory", "shared", "issue",
              "**predicted**", "roof", "× roof")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for p in predictions:
        r = p.resources
        threads = r.block[0] * r.block[1]
        cells = (r.kernel, "×".join(map(str, r.shape)), r.schedule, r.dtype, r.depth, f"{r.block[0]}×{r.block[1]}",
                 f"{p.bytes_per_update:.2f}", r.registers, r.spills, f"{r.shared / 1024:.1f}", p.blocks,
                 p.blocks * threads, f"{100 * p.filled:.0f} %", f"{100 * p.useful:.0f} %", f"{p.memory:.0f}",
                 f"{p.shared:.0f}", f"{p.issue:.0f}", f"**{p.predicted:.0f}**", f"{p.roof:.0f}",
                 f"{p.predicted / p.roof:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write bench/results/gpu_model.md."""
    out = Path(__file__).parent / "results" / "gpu_model.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text(HEADER + "\n" + table(rows()) + "\n")
    print(out)


if __name__ == "__main__":
    main()
