"""All CPU schedules give the same bits, and the reference's numbers: any tile, depth, thread count and batch."""

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from fastdiff.kernels import _edges, _march, _threads, gray_scott, heat, variable
from fastdiff.kernels._contract import discover
from fastdiff.kernels._edges import GHOST, HOLD, Side, make_edges
from fastdiff.kernels._fields import Cells
from fastdiff.kernels._run import Plan, march

EPS = np.finfo(np.float64).eps

# one cell, two, a prime, longer than a block; 1 wide either way, not square, wider than a vector; 3-D likewise
GRIDS = [(1,), (2,), (101,), (300,), (1, 1), (1, 9), (9, 1), (5, 7), (33, 70), (1, 1, 1), (3, 4, 5), (17, 9, 33)]
GRIDS += [(8, 1, 20)]
PLANS = [
    None,
    Plan("resident", (1, 1, 1), 100),  # all steps at once
    Plan("resident", (1, 1, 5), 3),  # blocks, a last sweep that is shorter
    Plan("stream", (1, 1, 1), 16),  # deeper than there are steps
    Plan("stream", (3, 2, 3), 3),
    Plan("stream", (2, 3, 2), 1),  # no time blocking
]
STEPS = 11


def random_edges(shape, periodic, rng, batch=2, components=1, dtype=np.float64):
    """Every kind of side and of value: constant, per sample, per time level, per cell, and all of them."""
    sides = {}
    for component, axis, end in itertools.product(range(components), range(len(shape)), (0, 1)):
        if periodic[axis]:
            continue
        face = int(np.prod(shape)) // shape[axis]
        sizes = [(), (batch, 1, 1), (1, STEPS + 1, 1), (1, 1, face), (batch, STEPS + 1, face)]
        value = rng.random(sizes[rng.integers(len(sizes))])
        if rng.random() < 0.5:
            sides[component, axis, end] = Side(HOLD, value=value)
        else:
            sides[component, axis, end] = Side(GHOST, rng.uniform(0.2, 0.9, batch), 0.1, 0.3, value)
    return make_edges(shape, periodic, dtype, sides, components=components, batch=batch)


def plans(shape):
    return [p for p in PLANS if p is None or p.schedule == "resident" or len(shape) > 1]


@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_every_schedule_gives_the_same_bits_and_the_reference(shape):
    rng = np.random.default_rng(len(shape) * 1000 + sum(shape))
    for periodic in itertools.product([False, True], repeat=len(shape)):
        edges = random_edges(shape, periodic, rng)
        u, rate = rng.random((2, 1, *shape)), rng.uniform(0.05, 0.45, (2, len(shape))) / len(shape)
        if rng.random() < 0.5:
            rate[:] = rate[:, :1]
        before, expected = u.copy(), heat.reference(u, rate, edges, STEPS)
        first = None
        for plan, threads in itertools.product(plans(shape), (1, 2)):
            out = heat.cpu(u, rate, edges, STEPS, out=np.full_like(u, np.nan), plan=plan, threads=threads)
            first = out if first is None else first
            assert np.array_equal(out, first), (periodic, plan, threads)
        assert np.abs(first - expected).max() <= 4 * STEPS * EPS * np.abs(expected).max()
        assert np.array_equal(u, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sample_does_not_depend_on_its_batch(dtype):
    shape, rng = (40, 33), np.random.default_rng(2)
    u = rng.random((5, 1, *shape)).astype(dtype)
    rate = np.repeat(rng.uniform(0.05, 0.2, (5, 1)), 2, axis=1)
    edges = make_edges(shape, [False, True], dtype, batch=1)
    together = heat.cpu(u, rate, edges, 20)
    for b in range(5):
        assert np.array_equal(heat.cpu(u[b : b + 1], rate[b : b + 1], edges, 20), together[b : b + 1])


@pytest.mark.parametrize(("shape", "dtype"), [((37, 611), np.float32), ((1031,), np.float64)])
def test_numbers_of_faces_that_are_handed_on_change_no_bit(shape, dtype, rng):
    """Read once, from the cell before, or twice: the same march, with walls and around the grid."""
    ndim = len(shape)
    u = rng.standard_normal((2, 1, *shape)).astype(dtype)
    weights = []
    for axis in range(ndim):  # a face serves both its cells; the last one is the first again
        low = rng.uniform(0.02, 0.2, (1, *shape))
        weights += [low, np.roll(low, -1, axis + 1)]
    handed = variable.rule(weights, dtype)
    assert handed.a2.handed
    plain = handed._replace(a2=Cells(handed.a2.values, ndim, dtype))
    for periodic in (True, False):
        edges = make_edges(shape, [periodic] * ndim, dtype)
        want = march(plain, u, edges, STEPS)
        for plan in plans(shape):
            assert np.array_equal(march(handed, u, edges, STEPS, plan=plan), want), (periodic, plan)


@pytest.mark.parametrize("shape", [(37,), (33, 21), (9, 8, 7)], ids=str)
def test_two_components_on_every_schedule(shape):
    rng = np.random.default_rng(3)
    kernel = discover()[f"gray_scott_{len(shape)}d"]
    inputs = kernel.sample(shape, np.float64, rng)
    for periodic in (True, False):
        inputs["edges"] = random_edges(shape, [periodic] * len(shape), rng, components=2)
        expected, first = gray_scott.reference(**inputs), None
        for plan in plans(shape):
            out = gray_scott.cpu(**inputs, plan=plan, threads=2)
            first = out if first is None else first
            assert np.array_equal(out, first), plan
        assert np.abs(first - expected).max() <= 8 * inputs["steps"] * EPS * np.abs(expected).max()


@pytest.mark.parametrize("name", ["rk23_2d", "rkl2_1d", "rkl2_3d"])
def test_what_stages_keep_on_every_schedule(name):
    """Registers are kept in place: every tile, depth and number of steps must leave the same ones."""
    kernel, rng = discover()[name], np.random.default_rng(8)
    assert kernel.cpu is not None
    for shape in {1: [(37,), (300,)], 2: [(33, 70), (1, 9), (9, 1)], 3: [(9, 8, 19)]}[kernel.ndim]:
        inputs, first = kernel.sample(shape, np.float64, rng), None
        expected = kernel.reference(**inputs)
        for plan, threads in itertools.product(plans(shape), (1, 2)):
            out = kernel.cpu(**inputs, plan=plan, threads=threads)
            first = out if first is None else first
            assert np.array_equal(out, first), (shape, plan, threads)
        assert np.abs(first - expected).max() <= 64 * EPS * np.abs(expected).max()


def test_a_wrong_rule_is_seen():
    """The comparison above can fail: a rule that is off by one part in 10^9 does."""
    u, edges = np.random.default_rng(0).random((1, 1, 30)), make_edges((30,), [False], "float64")
    rate = np.full((1, 1), 0.2)
    out = march(heat.rule(rate * (1 + 1e-9), u.dtype), u, edges, STEPS)
    assert np.abs(out - heat.reference(u, rate, edges, STEPS)).max() > 4 * STEPS * EPS


def test_periodic_fields_shift():
    """On a periodic grid, solving a shifted field is shifting the solution, to the bit."""
    u, edges = np.random.default_rng(4).random((1, 1, 48, 40)), make_edges((48, 40), [True, True], "float64")
    rate = np.full((1, 2), 0.2)
    shifted = heat.cpu(np.roll(u, (5, 9), (2, 3)), rate, edges, 20, plan=Plan("stream", (4, 1, 3), 4))
    assert np.array_equal(shifted, np.roll(heat.cpu(u, rate, edges, 20), (5, 9), (2, 3)))


@pytest.mark.parametrize("shape", [(64,), (40, 50)], ids=str)
def test_no_flux_conserves_in_float32(shape):
    """5000 steps on nodes: the trapezoid integral stays to a few parts in a million, a constant field to the bit."""
    edges = make_edges(shape, [False] * len(shape), "float32",
                       {(0, k, end): Side(GHOST, 0.0, 1.0) for k in range(len(shape)) for end in (0, 1)})
    rate = np.full((1, len(shape)), 0.4 / len(shape), np.float32)
    u = np.random.default_rng(5).random((1, 1, *shape)).astype(np.float32)
    weights = 1.0
    for n in shape:
        line = np.r_[0.5, np.ones(n - 2), 0.5]
        weights = np.multiply.outer(weights, line)
    before, after = (float((f[0, 0].astype(np.float64) * weights).sum()) for f in (u, heat.cpu(u, rate, edges, 5000)))
    assert abs(after / before - 1) < 3e-6
    flat = np.full_like(u, np.float32(0.7))
    assert np.array_equal(heat.cpu(flat, rate, edges, 5000), flat)


def test_denormals_are_flushed_inside_and_only_there():
    u = np.full((1, 1, 64), 1e-39, np.float32)
    out = heat.cpu(u, np.full((1, 1), 0.2), make_edges((64,), [True], "float32"), 3)
    assert np.all(out == 0)
    assert np.float32(1e-39) * np.float32(0.5) > 0  # the interpreter's own arithmetic is as before


def test_calls_from_several_threads_at_once():
    u, edges = np.random.default_rng(6).random((1, 1, 200, 90)), make_edges((200, 90), [False, False], "float64")
    rate = np.full((1, 2), 0.2)
    expected, results = heat.cpu(u, rate, edges, 50), {}

    def work(k):
        results[k] = heat.cpu(u, rate, edges, 50, threads=2, plan=Plan("stream", (5, 1, 2), 4))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert len(results) == 6 and all(np.array_equal(r, expected) for r in results.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_march():
    u, edges = np.ones((1, 1, 64, 64)), make_edges((64, 64), [False, False], "float64")
    plan = Plan("stream", (4, 1, 1), 2)
    heat.cpu(u, np.full((1, 2), 0.2), edges, 8, threads=2, plan=plan)  # the parent's helper threads exist
    child = os.fork()
    if child == 0:
        out = heat.cpu(u, np.full((1, 2), 0.2), edges, 8, threads=2, plan=plan)
        os._exit(0 if np.array_equal(out, u) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_errors_in_a_helper_reach_the_caller():
    def fail():
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("in a helper")
        event.wait(5)

    event = threading.Event()
    threading.Timer(0.3, event.set).start()
    with pytest.raises(RuntimeError, match="in a helper"):
        _threads.together(fail, 2)


def test_the_thread_count_is_checked():
    with pytest.raises(ValueError, match="at least 1"):
        _threads.set_threads(0)


def test_the_plain_python_row_is_not_there():
    with pytest.raises(NotImplementedError):
        _march.update_rows(*[None] * 25)


def test_what_does_not_fit_together_is_refused():
    u, rate, edges = np.ones((4, 1, 30)), np.full((4, 1), 0.2), make_edges((30,), [False], "float64", batch=4)
    one = heat.cpu(u, rate[:1], edges, 3)  # one parameter serves all samples
    assert np.array_equal(one, heat.cpu(u, rate, edges, 3))
    with pytest.raises(ValueError, match="parameters for 2 samples, but u has 4"):
        heat.cpu(u, rate[:2], edges, 3)
    with pytest.raises(ValueError, match="has 2 components"):
        march(discover()["gray_scott_1d"].rule_for(discover()["gray_scott_1d"].sample((30,), np.dtype("f8"),
              np.random.default_rng(0))), u, edges, 3)
    with pytest.raises(ValueError, match="the edges are for 3 samples"):
        heat.cpu(u, rate, make_edges((30,), [False], "float64", batch=3), 3)
    with pytest.raises(ValueError, match="in float32, but u"):
        heat.cpu(u, rate, make_edges((30,), [False], "float32"), 3)
    with pytest.raises(ValueError, match="out must be a C-contiguous array"):
        heat.cpu(u, rate, edges, 3, out=np.ones((4, 2, 1, 30))[:, 0])
    with pytest.raises(ValueError, match="must not share memory"):
        heat.cpu(u, rate, edges, 3, out=u)


def test_a_side_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no such side"):
        make_edges((4,), [False], "float64", {(0, 1, 0): Side()})
    with pytest.raises(ValueError, match="3 values, expected 1 or 2"):
        make_edges((4,), [False], "float64", {(0, 0, 0): Side(value=np.zeros((3, 1, 1)))}, batch=2)


CUSTOM = '''
import sys
from typing import Any, NamedTuple
import numpy as np
sys.path.insert(0, sys.argv[1])
from fastdiff.kernels._edges import make_edges
from fastdiff.kernels._run import march
if sys.argv[2] == "custom":
    from my_rule import Decay as rule
    rule = rule(np.array([0.5]))
else:
    from fastdiff.kernels import heat
    rule = heat.rule(np.array([[0.1]]), "float64")
u = np.ones((1, 1, 8))
out = march(rule, u, make_edges((8,), [True], "float64"), 2)
assert np.allclose(out, 0.25 if sys.argv[2] == "custom" else 1.0), out
from fastdiff.kernels._march import run_resident
print("hits", sum(run_resident.stats.cache_hits.values()))
'''


def test_a_custom_rule_run_once_and_then_deleted_leaves_the_cache_whole(tmp_path):
    """Numba unpickles every signature of an index: a rule class that is gone must not hide the others."""
    rule = tmp_path / "my_rule.py"
    rule.write_text("from typing import Any, NamedTuple\nclass Decay(NamedTuple):\n    k: Any\n    @staticmethod\n"
                    "    def cell(p, u, at):\n        return p.k * u.c\n")
    script = tmp_path / "run.py"
    script.write_text(CUSTOM)
    env = {**os.environ, "FASTDIFF_CACHE_DIR": str(tmp_path / "cache")}

    def run(which):
        done = subprocess.run([sys.executable, script, tmp_path, which], env=env, capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    assert run("heat") == 0 and run("custom") == 0  # compiled
    assert run("custom") == 1 and run("heat") == 1  # loaded
    rule.unlink()
    assert run("heat") == 1
    for index in (tmp_path / "cache").rglob("*.nbi"):  # damaged files are compiled anew, not an error
        index.write_bytes(b"nonsense")
    assert run("heat") == 0
    assert run("heat") == 1


def test_parameters_that_must_not_be_written_compile_nothing_new(rng):
    """Arrays that NumPy hands out read-only, such as what it broadcasts, are of another type to Numba."""
    u, rate = rng.random((2, 1, 9)), np.full((2, 1), 0.2)
    edges, fixed = make_edges((9,), [True], "float64", batch=2), np.broadcast_to(0.2, 2)
    expected = march(heat.rule(rate, "float64"), u, edges, 3)
    known = list(_march.run_resident.signatures)
    rule = heat.rule(rate, "float64")
    rule = _march.map_fields(rule, lambda field: fixed if np.shape(field) == (2,) else field)
    assert not any(np.shape(field) and field.flags.writeable for field in rule)
    assert np.array_equal(march(rule, u, edges, 3), expected)
    assert _march.run_resident.signatures == known


def test_edges_reference_calls_compiled_functions():
    from numba import cfunc

    @cfunc("float64(float64, float64, float64, float64, float64)")
    def g(t, x, y, z, u):
        return t + 10 * x + 100 * y + u * u

    side = Side(GHOST, 0.3, 0.2, 0.5, call=int(g.address or 0))
    edges = make_edges((6, 5), [False, False], "float64", {(0, k, end): side for k in (0, 1) for end in (0, 1)},
                       start=0.25, dt=0.01, origin=(1.0, 2.0), spacing=(0.1, 0.2), walls=((1.0, 1.5), (2.0, 2.8)),
                       face_weights=(1.5, -0.5))
    u, rate = np.random.default_rng(7).random((1, 1, 6, 5)), np.full((1, 2), 0.01)
    expected = heat.reference(u, rate, edges, 6)
    assert np.abs(expected - heat.reference(u, rate, make_edges((6, 5), [False, False], "float64"), 6)).max() > 1
    for plan in plans((6, 5)):
        assert np.abs(heat.cpu(u, rate, edges, 6, plan=plan) - expected).max() <= 1e-12 * np.abs(expected).max()


def test_reference_ghosts_are_those_of_the_definition():
    u = np.arange(4.0).reshape(1, 1, 4) + 1
    sides = {(0, 0, 0): Side(GHOST, 2.0, 3.0, 5.0, 7.0), (0, 0, 1): Side(HOLD, value=9.0)}
    edges = make_edges((4,), [False], "float64", sides)
    assert _edges.pad(u, edges, 0)[0, 0, 0] == 2 * 1 + 3 * 2 + 5 * 7
    assert _edges.hold(u.copy(), edges, 0)[0, 0, -1] == 9


TWIN = """
from typing import Any, NamedTuple


class Twin(NamedTuple):
    r: Any

    @staticmethod
    def change(p, u, at):
        return p.r {sign} u.c
"""
RUN_TWINS = """
import importlib, sys
import numpy as np
from fastdiff.kernels._edges import make_edges
from fastdiff.kernels._run import march

for name in sys.argv[1:]:
    rule = importlib.import_module(name).Twin(np.array([0.5]))
    print(march(rule, np.full((1, 1, 8), 2.0), make_edges((8,), [True], float), 1)[0, 0, 0])
"""


def test_rules_of_one_name_do_not_run_each_other_from_the_cache(tmp_path):
    """Numba names machine code by the class's bare name, and links what it has loaded first."""
    (tmp_path / "times.py").write_text(TWIN.format(sign="*"))
    (tmp_path / "plus.py").write_text(TWIN.format(sign="+"))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "FASTDIFF_CACHE_DIR": str(tmp_path / "cache")}

    def run(*names):
        command = [sys.executable, "-c", RUN_TWINS, *names]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()

    assert run("times") == ["3.0"] and run("plus") == ["4.5"]  # each alone fills the cache
    assert run("times", "plus") == ["3.0", "4.5"]
    assert run("plus", "times") == ["4.5", "3.0"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.skipif(_threads._where is None, reason="a thread cannot tell which core it is on")
def test_helpers_keep_away_from_the_core_of_the_caller():
    before = os.sched_getaffinity(0)
    try:
        for core in sorted(before)[:2]:
            os.sched_setaffinity(0, {core})  # this thread moves there
            os.sched_setaffinity(0, before)
            _threads._avoided = None
            _threads.together(lambda: None, 3)
            avoided = _threads._avoided
            assert avoided in before
            masks = [os.sched_getaffinity(helper.native_id) for helper in _threads._helpers]
            assert len(masks) >= 2 and all(mask == before - {avoided} for mask in masks)
    finally:
        os.sched_setaffinity(0, before)
