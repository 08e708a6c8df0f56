"""Threads that help a kernel without ever touching Python: for kernels that take less time than waking a thread does.

Compiled code that calls `together(board, helpers, entry, args)` runs the worker of `entry`, which `entry_of` made, in
this thread and in the helpers that come. Helpers live in compiled code: they look at the board for a while after each
job, then sleep. Nobody needs the interpreter lock, so a helper that is awake begins within a microsecond; one of
`_threads.together` has to take the lock from a caller that holds it until its kernel runs.

The caller never waits for a helper that has not begun: it does the work itself, and closes the job. It waits for those
that have, spinning shortly and then giving way. One job at a time: a caller that finds the board taken works alone.
`next_piece` shares out pieces so that each worker has a stretch of its own and begins to help elsewhere only when that
is done: pieces taken in turns would have the cores' prefetchers fetch, and write into, each other's cache lines, which
on a two-core Zen 5 VM makes two threads as slow as one.

A helper that wakes up on the caller's core, where Linux likes to put it, waits there until the caller is done: a
caller that finds one where it is itself sends it away, to any other core that the caller may use.

Safe after a fork (the child starts helpers of its own) and at exit (the helpers leave compiled code first).
"""

import atexit
import ctypes
import os
import platform
import sys
import threading

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastdiff.kernels._jit import atomic_add, atomic_load, atomic_store, disowned, give_way, inner, kernel
from fastdiff.kernels._threads import together as _with_python

LINE = 8  # words of a cache line
WORDS = 64 * LINE
LOCK, STATE, DONE, FUNCTION, DATA, BELL, SLEEPERS, MOST, QUIT = (LINE * k for k in range(9))
MUTEX, CONDITION = LINE * 16, LINE * 32  # 128 bytes each are enough for pthread's on Linux and macOS
CORES, THREADS, MASK = LINE * 40, LINE * 48, LINE * 56  # of each helper: the core it was last on, and its thread
OPEN, JOINED = 1 << 32, 0xFFFF
SPINS = 4000  # looks at the board before a helper sleeps: about 100 microseconds
PLACED = 64  # helpers beyond are where the system puts them
CORE_SET = 128  # bytes of a set of cores
AVAILABLE = sys.platform != "win32" and hasattr(ctypes.CDLL(None), "pthread_cond_wait")
_CAN_PLACE = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "sched_getcpu")

_POINTER = ir.IntType(8).as_pointer()
_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")


# -- what compiled code needs ----------------------------------------------------------------------------------------


@intrinsic
def _swap(typingctx, array, index, before, after):
    """Put `after` at `array[index]` if `before` is there; whether it was."""

    def codegen(context, builder, sig, args):
        ary = context.make_array(sig.args[0])(context, builder, args[0])
        place = builder.gep(ary.data, [args[1]])
        return builder.extract_value(builder.cmpxchg(place, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(array, types.int64, types.int64, types.int64), codegen


@intrinsic
def _address(typingctx, array, index):
    """Where `array[index]` is."""

    def codegen(context, builder, sig, args):
        ary = context.make_array(sig.args[0])(context, builder, args[0])
        return builder.ptrtoint(builder.gep(ary.data, [args[1]]), ir.IntType(64))

    return types.uintp(array, types.int64), codegen


@intrinsic
def _fence(typingctx):
    """All stores before are seen by all before any load after."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _pause(typingctx):
    """Tell the processor that this is a loop that waits."""

    def codegen(context, builder, sig, args):
        if _ON_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _spilled(typingctx, args):
    """The address of a copy of a tuple on this function's stack."""

    def codegen(context, builder, sig, values):
        slot = cgutils.alloca_once_value(builder, values[0])
        return builder.ptrtoint(slot, ir.IntType(64))

    return types.int64(args), codegen


def entry_of(worker):
    """An intrinsic for `together`: args -> the address of a C function that calls `worker` with a tuple of them."""
    known = types.Dispatcher(worker)

    @intrinsic
    def entry(typingctx, args):
        known.get_call_type(typingctx, args.types, {})

        def codegen(context, builder, sig, values):
            compiled = worker.overloads[sig.args[0].types]
            context.add_linking_libs([compiled.library])
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [_POINTER]),
                                   builder.module.get_unique_name(f"{builder.function.name}.entry"))
            function.linkage = "internal"
            inside = ir.IRBuilder(function.append_basic_block())
            place = inside.bitcast(function.args[0], context.get_value_type(sig.args[0]).as_pointer())
            kinds = sig.args[0].types  # the caller holds the arrays: workers that count references wait for each other
            parts = [disowned(context, inside, t, v) for t, v in
                     zip(kinds, cgutils.unpack_tuple(inside, inside.load(place)))]
            context.call_internal_no_propagate(inside, compiled.fndesc, compiled.signature, parts)
            inside.ret_void()
            return builder.ptrtoint(function, ir.IntType(64))

        return types.int64(args), codegen

    return entry


@intrinsic
def _call(typingctx, function, data):
    """Call the C function `void f(void *)` at an address."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [_POINTER]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.inttoptr(args[1], _POINTER)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def _external(name, count):
    return types.ExternalFunction(name, types.int32(*[types.uintp] * count))


if AVAILABLE:
    _lock, _unlock = _external("pthread_mutex_lock", 1), _external("pthread_mutex_unlock", 1)
    _wait, _wake = _external("pthread_cond_wait", 2), _external("pthread_cond_broadcast", 1)

    @inner
    def _ring(board):  # pyright: ignore[reportRedeclaration]
        """Wake those who sleep."""
        mutex, condition = _address(board, MUTEX), _address(board, CONDITION)
        _lock(mutex)
        _wake(condition)
        _unlock(mutex)

    @inner
    def _sleep(board, seen):  # pyright: ignore[reportRedeclaration]
        """Sleep until the bell is no longer what it was."""
        mutex, condition = _address(board, MUTEX), _address(board, CONDITION)
        _lock(mutex)
        atomic_add(board, SLEEPERS, 1)
        _fence()
        while atomic_load(board, BELL) == seen:
            _wait(condition, mutex)
        atomic_add(board, SLEEPERS, -1)
        _unlock(mutex)
else:  # helpers come from _threads.py

    @inner
    def _ring(board):  # pyright: ignore[reportRedeclaration]
        """Nobody sleeps."""

    @inner
    def _sleep(board, seen):  # pyright: ignore[reportRedeclaration]
        """Nobody sleeps."""
        give_way()


if AVAILABLE and _CAN_PLACE:
    _core = _external("sched_getcpu", 0)
    _cores_of = types.ExternalFunction("sched_getaffinity", types.int32(types.int32, types.uintp, types.uintp))
    _confine = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, types.uintp, types.uintp))

    @inner
    def _say_where(board, number):  # pyright: ignore[reportRedeclaration]
        """A helper writes down which core it is on."""
        core = np.int64(_core())
        if number < PLACED and board[CORES + number] != core:
            board[CORES + number] = core

    @inner
    def _send_away(board, number, core):
        """Let a helper run on the cores that this thread may use, but for one."""
        mask = _address(board, MASK)
        if core >= 8 * CORE_SET or _cores_of(0, CORE_SET, mask) < 0:
            return
        word, bit = MASK + (core >> 6), np.int64(1) << (core & 63)
        board[word] &= ~bit
        for k in range(CORE_SET // 8):
            if board[MASK + k] != 0:
                _confine(np.int32(board[THREADS + number]), CORE_SET, mask)
                board[CORES + number] = -1
                break

    @inner
    def _make_room(board, helpers):  # pyright: ignore[reportRedeclaration]
        """Send helpers away from this thread's core."""
        core = np.int64(_core())
        for k in range(min(helpers, PLACED)):
            if board[CORES + k] == core:
                _send_away(board, k, core)
else:

    @inner
    def _say_where(board, number):  # pyright: ignore[reportRedeclaration]
        """Helpers are where the system puts them."""

    @inner
    def _make_room(board, helpers):  # pyright: ignore[reportRedeclaration]
        """Helpers are where the system puts them."""


# -- jobs ------------------------------------------------------------------------------------------------------------


@inner
def _announce(board):
    atomic_add(board, BELL, 1)
    _fence()
    if atomic_load(board, SLEEPERS) > 0:
        _ring(board)


@inner
def _open(board, helpers, function, data):
    _make_room(board, helpers)
    board[MOST], board[FUNCTION], board[DATA] = helpers, function, data
    atomic_store(board, DONE, 0)
    atomic_store(board, STATE, OPEN)
    _announce(board)


@inner
def _look_again(looks):
    """Wait a moment; now and then let another thread run, which may be the very one that is waited for."""
    if looks & 63 == 0:
        give_way()
    else:
        _pause()


@inner
def _close(board):
    """Let no more helpers in, and wait for those inside."""
    joined, looks = atomic_add(board, STATE, -OPEN) - OPEN, 0
    while atomic_load(board, DONE) < joined:
        looks += 1
        _look_again(looks)
    atomic_store(board, LOCK, 0)


@inner
def together(board, helpers, entry, args):
    """Run the worker of `entry` here and in up to `helpers` helpers, until all that began have returned."""
    function, data = entry(args), _spilled(args)
    mine = helpers > 0 and _swap(board, LOCK, 0, 1)
    if mine:
        _open(board, helpers, function, data)
    _call(function, data)
    if mine:
        _close(board)


@kernel()
def serve(board, spins, number):
    """The life of helper `number`."""
    seen = atomic_load(board, BELL)
    while atomic_load(board, QUIT) == 0:
        looks = 0
        _say_where(board, number)
        while atomic_load(board, BELL) == seen:
            looks += 1
            if looks < spins:
                _look_again(looks)
            else:
                _sleep(board, seen)
        seen = atomic_load(board, BELL)
        while True:
            state = atomic_load(board, STATE)
            if state & OPEN == 0 or state & JOINED >= board[MOST]:
                break
            if _swap(board, STATE, state, state + 1):
                _call(board[FUNCTION], board[DATA])
                atomic_add(board, DONE, 1)
                break


@kernel()
def _dismiss(board):
    atomic_store(board, QUIT, 1)
    _announce(board)


# -- pieces of work --------------------------------------------------------------------------------------------------


def counters(workers: int) -> np.ndarray:
    """What `next_piece` counts with: zeros, a cache line for the workers' numbers and one for each stretch."""
    return np.zeros((1 + workers) * LINE, np.int64)


@inner
def number_of(counter):
    """This worker's number, from 0 on."""
    return atomic_add(counter, 0, 1)


@inner
def next_piece(counter, me, pieces):
    """The next piece for worker `me`, of `pieces`: from its own stretch, then from the others'; `pieces` at the end."""
    stretches, count = len(counter) // LINE - 1, np.int64(pieces)
    for turn in range(stretches):
        j = (me + turn) % stretches
        begin, end = count * j // stretches, count * (j + 1) // stretches
        if atomic_load(counter, LINE * (j + 1)) < end - begin:
            piece = begin + atomic_add(counter, LINE * (j + 1), 1)
            if piece < end:
                return np.uint64(piece)
    return np.uint64(count)


# -- the helpers -----------------------------------------------------------------------------------------------------

_guard = threading.Lock()
_board: np.ndarray | None = None
_helpers: list[threading.Thread] = []
_NOBODY = np.zeros(WORDS, np.int64)  # the board of those who work alone


def _new_board():
    raw = np.zeros(WORDS + LINE, np.int64)
    board = raw[-raw.ctypes.data % 64 // 8 :][:WORDS]
    library, start = ctypes.CDLL(None), board.ctypes.data
    library.pthread_mutex_init(ctypes.c_void_p(start + 8 * MUTEX), None)
    library.pthread_cond_init(ctypes.c_void_p(start + 8 * CONDITION), None)
    board[CORES : CORES + PLACED] = -1
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))  # helpers look at it until the process ends
    return board


def _live(board, number):
    if number < PLACED:
        board[THREADS + number] = threading.get_native_id()
    serve(board, SPINS, number)


def _board_with(helpers: int) -> np.ndarray:
    """The board, with at least so many helpers at it."""
    global _board
    if len(_helpers) < helpers or _board is None:
        with _guard:
            if _board is None:
                _board = _new_board()
            while len(_helpers) < helpers:
                number = len(_helpers)
                thread = threading.Thread(target=_live, args=(_board, number), daemon=True,
                                          name=f"fastdiff-team-{number + 1}")
                thread.start()
                _helpers.append(thread)
    return _board


def _forget():
    """In a forked child no helper exists: begin again."""
    global _board, _guard
    _helpers.clear()
    _board, _guard = None, threading.Lock()


def _leave():
    """At exit: helpers leave compiled code before that is taken away."""
    if _board is not None and _helpers:
        _dismiss(_board)
        for thread in _helpers:
            thread.join(1.0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_leave)


def run(entry, args: tuple, workers: int) -> None:
    """Call the compiled `entry(board, helpers, args)`, which is to call `together`, with `workers - 1` helpers."""
    if workers <= 1:
        entry(_NOBODY, 0, args)
    elif AVAILABLE:
        entry(_board_with(workers - 1), workers - 1, args)
    else:
        _with_python(lambda: entry(_NOBODY, 0, args), workers)


__all__ = ["AVAILABLE", "counters", "entry_of", "next_piece", "number_of", "run", "together"]
