"""Making samples: in this process, in several, or on a Dask cluster. Whoever makes them, the numbers are the same."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import get_context, parent_process
from queue import Empty, Full, Queue

from fastdiff.data.job import Job
from fastdiff.data.store import Store
from fastdiff.kernels._threads import set_threads

Blocks = Iterable[tuple[int, int]]
PATIENCE = 3  # worker processes that die one after another, without a block being finished between


def here(job: Job, store: Store, blocks: Blocks, threads: int, done: Callable[[int], None]) -> None:
    """Make blocks in this process: one is written while the next one is solved."""

    def write(item):
        first, make = item
        records, fields = make()
        store.target.write(first, fields)
        store.note(first, records)
        done(len(records))

    with Behind(write) as behind:
        for first, count in blocks:
            made = job.make(first, count, threads)
            if job.device != "cuda":
                result = made()
                made = lambda result=result: result
            behind.put((first, made))


class Behind:
    """A thread that does something with items, in order, behind one's back: one is worked on and one more waits."""

    def __init__(self, work):
        self.work, self.queue, self.error = work, Queue(1), None
        self.thread = threading.Thread(target=self._run, daemon=True, name="fastdiff-writer")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._hand_over(None)  # what is computed is written, also on the way out
        self.thread.join()
        if kind is None and self.error is not None:
            raise self.error

    def put(self, item):
        """Hand an item over; waits while another one waits."""
        self._hand_over(item)
        if self.error is not None:
            raise self.error

    def _hand_over(self, item):
        while self.error is None:
            with suppress(Full):
                return self.queue.put(item, timeout=0.1)

    def _run(self):
        try:
            while (item := self.queue.get()) is not None:
                self.work(item)
        except BaseException as error:  # raised again by `put`
            self.error = error
            with suppress(Empty):
                self.queue.get_nowait()


# -- processes --------------------------------------------------------------------------------------------------------


def in_processes(job: Job, store: Store, blocks: Blocks, workers: int, threads: int, done) -> int:
    """Make blocks in processes of this machine. Those of a process that dies are made again; returns how many died."""
    share, todo, deaths, idle = max(1, threads // workers), list(blocks), 0, 0
    while todo:
        left = _try_processes(job, store, todo, workers, share, done)
        if left is None:
            return deaths
        idle, deaths = (0 if len(left) < len(todo) else idle + 1), deaths + 1
        if idle >= PATIENCE:
            raise RuntimeError('worker processes die again and again (out of memory? a script needs '
                               '`if __name__ == "__main__":`); finished samples are kept: run the same again to go on')
        todo = left
    return deaths


def _try_processes(job, store, blocks, workers, share, done):
    """Make blocks until all are done (None) or a process dies: those that are left."""
    left, todo, running = list(blocks), iter(blocks), {}
    with ProcessPoolExecutor(min(workers, len(left)), get_context("spawn"), _begin_worker, (share,)) as pool:

        def begin(count):
            for block in islice(todo, count):
                running[pool.submit(_make_one, job, store.target.part(*block), *block, share)] = block

        try:
            with _ctrl_c_is_ours():
                begin(workers)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    block = running[future]
                    store.note(block[0], future.result())
                    del running[future]
                    left.remove(block)
                    done(block[1])
                    begin(1)
        except BrokenProcessPool:
            return left
    return None


@contextmanager
def _ctrl_c_is_ours():
    """Processes started in here never see Ctrl-C, from their first moment on: this one decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    set_threads(threads)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _make_one(job, target, first, count, threads):
    records, fields = job.make(first, count, threads)()
    target.write(first, fields)
    return records


# -- a cluster --------------------------------------------------------------------------------------------------------


def on_cluster(job: Job, store: Store, blocks: Blocks, cluster, threads: int | None, done) -> None:
    """Make blocks on a Dask cluster: an address, or a Client.

    Samples come back over the network and are written here, by one writer, so the workers need no file system of ours.
    Dask makes those of a worker that dies again. As many blocks are under way as the cluster has threads, and as many
    more wait. A block is solved by one thread unless `threads` says otherwise: Dask runs one for each of its threads.
    """
    distributed = _distributed()
    client = cluster if isinstance(cluster, distributed.Client) else _connect(distributed, cluster)
    try:
        slots = _check_cluster(client)
        todo = iter(blocks)
        send = lambda block: client.submit(_make_far, job, *block, threads or 1, pure=False, retries=2,
                                           key=f"fastdiff-{os.urandom(6).hex()}-{block[0]}")
        under_way = distributed.as_completed([send(b) for b in islice(todo, 2 * slots)], loop=client.loop)
        with Behind(lambda item: _write(store, done, *item)) as behind:
            for future in under_way:
                behind.put(_result(distributed, future))
                future.release()
                for block in islice(todo, 1):
                    under_way.add(send(block))
    finally:
        if client is not cluster:
            client.close()


def _distributed():
    try:
        import distributed
    except ImportError:
        raise ImportError("cluster needs Dask: pip install 'fastdiff-pde[distributed]'") from None
    return distributed


def _connect(distributed, address):
    """A Client of the scheduler at an address.

    A Client that finds none leaves its event loop behind, and waits 40 s for it when it is collected: knock first.
    """
    try:
        if isinstance(address, str) and not address.startswith("inproc://"):
            socket.create_connection(distributed.comm.get_address_host_port(address), timeout=20).close()
        return distributed.Client(address, timeout=20)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise OSError(f"there is no Dask scheduler at {address!r} ({error}): start one with `dask scheduler`, or give "
                      f"the address it prints, such as tcp://10.0.0.1:8786") from None


def _check_cluster(client) -> int:
    """Threads of the cluster; refuses workers that cannot do the work."""
    client.wait_for_workers(1, timeout=60)
    versions = client.run(_version)
    import fastdiff as fd

    wrong = {address: v for address, v in versions.items() if v != (fd.__version__, _stamp())}
    if wrong:
        address, version = next(iter(wrong.items()))
        raise RuntimeError(f"the worker {address} has {version or 'no fastdiff'}, this process {fd.__version__} "
                           f"{_stamp()}: install the same fastdiff there, so that the numbers are the same")
    return max(1, sum(client.nthreads().values()))


def _version():
    try:
        import fastdiff as fd
    except ImportError:
        return None
    return fd.__version__, _stamp()


def _stamp():
    from fastdiff.kernels._jit import source_stamp

    return source_stamp()


def _make_far(job, first, count, threads):
    records, fields = job.make(first, count, threads)()
    return first, records, fields


def _result(distributed, future):
    try:
        return future.result()
    except distributed.KilledWorker as error:
        raise RuntimeError(f"a block killed every worker that tried it ({error}); out of memory? finished samples are "
                           f"kept: run the same again to go on") from None


def _write(store, done, first, records, fields):
    store.target.write(first, fields)
    store.note(first, records)
    done(len(records))


__all__ = ["here", "in_processes", "on_cluster"]
