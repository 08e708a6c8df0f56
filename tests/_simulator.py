"""Numba's CUDA simulator, one thread at a time: many times as fast, and its runs can be repeated.

The simulator starts a Python thread for every CUDA thread and lets them all run, while another one asks them in a busy
loop whether they have reached a barrier: nearly all of the time goes into waiting for the interpreter's lock. Here the
threads of a block are greenlets that take turns: each runs from one barrier to the next, in an order that is drawn
anew for every barrier. A read that no barrier separates from another thread's write thus meets both orders, where the
system's threads nearly always run in the order in which they were started.
"""

import random
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet
from numba.cuda.simulator import kernel, kernelapi


class _Block(kernel.BlockManager):
    """The threads of a block, which take turns."""

    def run(self, grid_point, *args):
        draw = random.Random(str(grid_point))
        running = [_Thread(self, grid_point, point, args) for point in np.ndindex(*self._block_dim)]
        while running:
            draw.shuffle(running)
            for thread in running:
                thread.switch()
            running = [thread for thread in running if not thread.dead]


class _Thread(greenlet):
    """A CUDA thread, which runs to the next barrier or to its end."""

    def __init__(self, manager, block, point, args):
        super().__init__()
        self._manager, self._args = manager, args
        self.blockIdx, self.threadIdx = kernel.Dim3(*block), kernel.Dim3(*point)
        size = manager._block_dim
        self.thread_id = point[0] + size[0] * (point[1] + size[1] * point[2])

    def run(self):
        try:
            self._manager._f(*self._args)
        except Exception as error:
            error.add_note(f"in thread {tuple(self.threadIdx)} of block {tuple(self.blockIdx)}")
            raise

    def syncthreads(self):
        self.parent.switch()

    syncthreads_count = kernel.BlockThread.syncthreads_count
    syncthreads_and = kernel.BlockThread.syncthreads_and
    syncthreads_or = kernel.BlockThread.syncthreads_or


def install():
    """Let the simulator run blocks in turns."""
    kernel.BlockManager = _Block
    kernelapi.threading = SimpleNamespace(current_thread=getcurrent)
