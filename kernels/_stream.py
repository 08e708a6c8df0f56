"""Writing past the caches, and asking for memory ahead of time.

Results that are larger than the caches cost twice what they should: before a cache line is written it is read. A
non-temporal store does not read it. LLVM does not make such stores from a loop: here they are whole vectors.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastdiff.kernels._jit import inner

_LINE = 64  # bytes of a cache line, and of the widest vector


@intrinsic
def _store_line(typingctx, dst, at, src, here):
    """The 64 bytes from src[here] on to dst[at] on, which is the start of a cache line, past the caches."""

    def codegen(context, builder, sig, args):
        width = _LINE // (sig.args[0].dtype.bitwidth // 8)
        element = context.get_data_type(sig.args[0].dtype)
        pointer = ir.VectorType(element, width).as_pointer()
        places = [builder.bitcast(builder.gep(context.make_array(kind)(context, builder, value).data, [index]), pointer)
                  for kind, value, index in ((sig.args[0], args[0], args[1]), (sig.args[2], args[2], args[3]))]
        value = builder.load(places[1], align=4)
        store = builder.store(value, places[0], align=_LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(dst, types.uint64, src, types.uint64), codegen


@intrinsic
def _misplaced(typingctx, array, index):
    """By how many bytes `array[index]` lies behind the start of a cache line."""

    def codegen(context, builder, sig, args):
        ary = context.make_array(sig.args[0])(context, builder, args[0])
        place = builder.ptrtoint(builder.gep(ary.data, [args[1]]), ir.IntType(64))
        return builder.and_(place, ir.Constant(ir.IntType(64), _LINE - 1))

    return types.uint64(array, types.uint64), codegen


@intrinsic
def _ask(typingctx, array, index):
    """Ask for the cache line of `array[index]`, which need not exist."""

    def codegen(context, builder, sig, args):
        ary = context.make_array(sig.args[0])(context, builder, args[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(ary.data, [args[1]]), pointer)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(array, types.uint64), codegen


@intrinsic
def finish_stream(typingctx):
    """What `stream` wrote is seen by all before what comes after."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@inner
def fetch(array, lo, hi):
    """Ask for array[lo:hi] ahead of time; what lies behind its end is left out."""
    step, end = np.uint64(_LINE) // np.uint64(array.itemsize), min(hi, np.uint64(len(array)))
    while lo < end:
        _ask(array, lo)
        lo += step


@inner
def stream(dst, at, src, here, count):
    """dst[at + i] = src[here + i] for i < count, past the caches; call `finish_stream` in the end."""
    item, line, none = np.uint64(dst.itemsize), np.uint64(_LINE), np.uint64(0)
    width = line // item
    head = min((line - _misplaced(dst, at)) % line // item, count)
    for i in range(none, head):
        dst[at + i] = src[here + i]
    i = head
    while i + width <= count:
        _store_line(dst, at + i, src, here + i)
        i += width
    while i < count:
        dst[at + i] = src[here + i]
        i += np.uint64(1)


__all__ = ["fetch", "finish_stream", "stream"]
