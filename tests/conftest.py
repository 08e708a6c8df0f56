"""What all tests share."""

import gc
import os

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that have all cores busy: torch's threads would spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(100_000, 20, 20)  # what compiles makes many objects: a tenth of all time went into looking at them

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


if SIMULATED:
    from _simulator import install

    install()


def cuda_ready() -> bool:
    """Whether CUDA kernels can run in this process: in the simulator, or on a GPU."""
    if SIMULATED:
        return True
    try:
        from numba import cuda

        return bool(cuda.is_available())
    except Exception:  # a broken driver is no GPU
        return False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not cuda_ready():
        pytest.skip("no GPU here; the simulator's own process runs it (NUMBA_ENABLE_CUDASIM=1)")


@pytest.fixture
def rng():
    """A seeded random generator."""
    return np.random.default_rng(0)
