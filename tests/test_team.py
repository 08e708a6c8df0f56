"""Helpers that stay in compiled code: every piece once, from many threads at once, after a fork, and at exit."""

import ctypes
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fastdiff.kernels import _team
from fastdiff.kernels._jit import atomic_add, kernel
from fastdiff.kernels._stream import finish_stream, stream
from fastdiff.kernels._team import counters, entry_of, next_piece, number_of, run, together
from fastdiff.kernels.noise import Draw, normal


@kernel()
def count_pieces(counter, taken, by, rounds):
    """Worker: counts each piece it takes, which is some work."""
    me = number_of(counter)
    while True:
        piece = next_piece(counter, me, len(taken))
        if piece >= np.uint64(len(taken)):
            break
        atomic_add(taken, np.int64(piece), 1)
        by[piece] = me
        for _ in range(rounds):
            atomic_add(counter, 1, 1)


_entry = entry_of(count_pieces)


@kernel()
def count_together(board, helpers, args):
    """`count_pieces` with helpers."""
    together(board, helpers, _entry, args)


def take(pieces, workers, rounds=20):
    """How often each piece was taken, and by whom."""
    taken, by = np.zeros(pieces, np.int64), np.full(pieces, -1)
    run(count_together, (counters(workers), taken, by, rounds), workers)
    return taken, by


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("pieces", [0, 1, 2, 7, 64, 1001])
def test_every_piece_is_taken_once(workers, pieces):
    for _ in range(20):
        taken, by = take(pieces, workers)
        assert (taken == 1).all()
        assert by.min(initial=0) >= 0 and by.max(initial=0) < workers


@pytest.mark.skipif(not _team.AVAILABLE, reason="helpers of this kind need pthreads")
def test_helpers_come():
    for _ in range(50):  # whether a helper comes in time is up to the system
        _, by = take(64, 2, rounds=20_000)
        if len(set(by)) == 2:
            break
    else:
        pytest.fail("no helper came in fifty jobs of milliseconds")


def test_helpers_wake_up_again():
    for pause in (0, 0.001, 0.05):
        time.sleep(pause)
        assert (take(64, 2, rounds=200)[0] == 1).all()


@pytest.mark.skipif(not _team.AVAILABLE or not _team._CAN_PLACE or len(os.sched_getaffinity(0)) < 2,
                    reason="helpers are placed on Linux, where there are two cores")
def test_a_helper_leaves_the_core_of_its_caller():
    take(64, 2)
    helper, libc = _team._helpers[0].native_id, ctypes.CDLL(None)
    for _ in range(50):  # this thread may be moved itself, in between
        here = libc.sched_getcpu()
        os.sched_setaffinity(helper, {here})
        time.sleep(0.01)  # asleep by now
        take(64, 2)
        left = os.sched_getaffinity(helper)
        if left == os.sched_getaffinity(0) - {here}:
            break
        take(64, 2)
    else:
        pytest.fail(f"the helper may run on {left}, its caller runs on {libc.sched_getcpu()}")


def test_many_threads_at_once():
    expected = normal(np.zeros((3, 50_000), np.float32), Draw(1, 2), threads=1)
    wrong = []

    def call():
        for _ in range(20):
            found = normal(np.zeros((3, 50_000), np.float32), Draw(1, 2), threads=3)
            if not np.array_equal(found, expected):
                wrong.append(found)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import os, sys
import numpy as np
from fastdiff.kernels.noise import Draw, normal
u = np.zeros((3, 50_000), np.float32)
expected = normal(u, Draw(1, 2), threads=2)
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(normal(u, Draw(1, 2), threads=2), expected) else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("how", ["exit", pytest.param("fork", marks=pytest.mark.skipif(
    not hasattr(os, "fork"), reason="no fork here"))])
def test_a_process_forks_and_ends_in_peace(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


# -- writing past the caches -------------------------------------------------------------------------------------------


@kernel()
def copy_past(dst, at, src, here, count):
    """`stream`, called once."""
    stream(dst, np.uint64(at), src, np.uint64(here), np.uint64(count))
    finish_stream()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at", [0, 1, 3, 15, 16])
@pytest.mark.parametrize("count", [0, 1, 7, 16, 33, 200])
def test_stream_writes_what_it_should_and_no_more(dtype, at, count):
    src = np.arange(300, dtype=dtype)
    dst = np.full(300, -1, dtype)
    copy_past(dst, at, src, 5, count)
    expected = np.full(300, -1, dtype)
    expected[at : at + count] = src[5 : 5 + count]
    np.testing.assert_array_equal(dst, expected)
