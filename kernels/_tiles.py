"""Two matrix products on rows in cache, written in LLVM's vectors: what convolutions are made of.

    multiply    dst[m, x] = first[m] + sum over t of  w[t, m] * src[x + offsets[t]]      a block of M rows at once
    correlate   acc[m, t] += sum over x of  left[m, x] * right[t, x]                     a block of M x T at once

A convolution is `multiply` with a table of offsets, one for each tap: the table holds the whole geometry (channels,
axes, dilation). The gradient of its weights is `correlate`. All numbers of a block stay in registers while the sum
runs. LLVM's own vectoriser cannot do this: it vectorises the innermost loop, which here is the sum over taps.

Two more for two layers with one channel in and out, whose hidden channels need not leave the registers then, or once:

    through     dst[k, x] = sum over c of  w2[c, k] max(h[c, x], floor),   h[c, x] = b[c] + sum over k of w1[c, k] x[k]
    halfway     both factors of the gradients of w1, b and w2, for `correlate`

Arrays are flat. Rows are whole vectors: `vectors` of them are read and written, beyond the last cell that counts.
The block is given as a tuple of M (or T) zeros, because its length is then known while compiling.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from fastdiff.kernels._jit import FLAGS

VECTOR_BYTES = 64 if llvm.get_host_cpu_features().get("avx512f") else 32
UNROLL = {1: 8, 2: 4, 3: 4, 4: 4, 6: 3, 8: 2, 9: 2} if VECTOR_BYTES == 64 else {1: 8, 2: 4, 3: 3, 4: 2}
CHANNELS = 4 if VECTOR_BYTES == 64 else 2  # that `through` and `halfway` take at once
THROUGH = {3: 2, 5: 2, 7: 2, 9: 2} if VECTOR_BYTES == 64 else {3: 2, 5: 1}  # vectors at once, by taps
HALFWAY = (3, 2, 1) if VECTOR_BYTES == 64 else (1,)
FUSED = tuple(THROUGH)  # numbers of taps whose sums stay in registers
BLOCKS = tuple(UNROLL)  # values of M that `multiply` is used with: M times UNROLL numbers fit into the registers


def lanes(dtype) -> int:
    """Numbers in a vector."""
    return VECTOR_BYTES // dtype.itemsize


def _lanes(kind):
    return VECTOR_BYTES * 8 // kind.bitwidth


class _Code:
    """What both products emit: pointers into flat arrays, vectors, sums in registers."""

    def __init__(self, context, builder, sig, args):
        self.builder, self.context = builder, context
        self.sig, self.args = sig, args
        self.kind = sig.args[0].dtype
        self.number = context.get_data_type(self.kind)
        self.width = _lanes(self.kind)
        self.vector = ir.VectorType(self.number, self.width)
        self.size = self.kind.bitwidth // 8

    def data(self, k):
        return self.context.make_array(self.sig.args[k])(self.context, self.builder, self.args[k]).data

    def integer(self, value):
        return ir.Constant(ir.IntType(64), value)

    def at(self, pointer, *parts):
        """The address so many numbers further on: the sum of `parts`."""
        where = parts[0]
        for part in parts[1:]:
            where = self.builder.add(where, part)
        return self.builder.gep(pointer, [where])

    def load(self, pointer):
        there = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.load(there, align=self.size)

    def store(self, value, pointer):
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.size)

    def spread(self, pointer):
        """One number in all lanes."""
        zero = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(zero, self.builder.load(pointer), ir.Constant(ir.IntType(32), 0))
        pick = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, zero, pick)

    def places(self, count):
        return [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]

    def everywhere(self, number):
        """A number, which is in no memory, in all lanes."""
        vector = ir.VectorType(number.type, self.width)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        pick = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, one, pick)

    def load_one(self, table, *parts):
        """table[sum of parts], of whole numbers."""
        parts = [self.integer(p) if isinstance(p, int) else p for p in parts]
        return self.builder.load(self.at(table, *parts))

    def at_least(self, value, floor):
        """max(value, floor); NaN stays NaN."""
        return self.builder.select(self.builder.fcmp_ordered("<", value, floor), floor, value)

    def fma(self, a, b, c):
        return self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def add_product(self, place, a, b):
        self.builder.store(self.fma(a, b, self.builder.load(place)), place)


@intrinsic
def multiply(typingctx, dst, at, pitch, src, here, offsets, first_tap, taps, w, first_w, first, first_first, m,
             vectors):
    """dst[at + m*pitch + x] = first[first_first + m] + sum over t of w[first_w + t*M + m] * src[here + offset(t) + x].

    offset(t) = offsets[first_tap + t], for t < taps and x < vectors * lanes. dst must not overlap src.
    """
    rows = len(m)

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        out, source, table, weight, start = (code.data(k) for k in (0, 3, 5, 8, 10))
        at, pitch, here, tap0, taps, w0, f0, vectors = (args[k] for k in (1, 2, 4, 6, 7, 9, 11, 13))
        done = cgutils.alloca_once_value(builder, code.integer(0))

        def block(unroll):
            sums = code.places(rows * unroll)
            position = builder.load(done)
            shift = builder.mul(position, code.integer(code.width))
            for r in range(rows):
                value = code.spread(code.at(start, f0, code.integer(r)))
                for v in range(unroll):
                    builder.store(value, sums[r * unroll + v])
            base = code.at(source, here, shift)
            with cgutils.for_range(builder, taps) as loop:
                offset = builder.load(code.at(table, tap0, loop.index))
                near = code.at(base, offset)
                values = [code.load(code.at(near, code.integer(v * code.width))) for v in range(unroll)]
                row = code.at(weight, w0, builder.mul(loop.index, code.integer(rows)))
                for r in range(rows):
                    factor = code.spread(code.at(row, code.integer(r)))
                    for v in range(unroll):
                        code.add_product(sums[r * unroll + v], values[v], factor)
            for r in range(rows):
                line = code.at(out, at, builder.mul(pitch, code.integer(r)), shift)
                for v in range(unroll):
                    code.store(builder.load(sums[r * unroll + v]), code.at(line, code.integer(v * code.width)))
            builder.store(builder.add(position, code.integer(unroll)), done)

        for unroll in dict.fromkeys((UNROLL.get(rows, 1), 1)):
            with While(builder, done, vectors, unroll):
                block(unroll)
        return context.get_dummy_value()

    return types.none(dst, at, pitch, src, here, offsets, first_tap, taps, w, first_w, first, first_first, m,
                      vectors), codegen


class While:
    """`while done + step <= total:` around what is emitted inside."""

    def __init__(self, builder, done, total, step):
        self.builder, self.done, self.total, self.step = builder, done, total, step

    def __enter__(self):
        builder = self.builder
        self.test, body = builder.append_basic_block("test"), builder.append_basic_block("body")
        self.end = builder.append_basic_block("end")
        builder.branch(self.test)
        builder.position_at_end(self.test)
        ahead = builder.add(builder.load(self.done), ir.Constant(ir.IntType(64), self.step))
        builder.cbranch(builder.icmp_signed("<=", ahead, self.total), body, self.end)
        builder.position_at_end(body)

    def __exit__(self, *error):
        self.builder.branch(self.test)
        self.builder.position_at_end(self.end)


@intrinsic
def correlate(typingctx, acc, into, left, here, left_pitch, m, right, there, right_pitch, t, rows, left_row, right_row,
              vectors):
    """acc[into + m*T + t] (each a whole vector) += sum over rows j and x of left * right.

    left = left[here + m*left_pitch + j*left_row + x], right = right[there + t*right_pitch + j*right_row + x].
    """
    many, taps = len(m), len(t)

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        out, one, two = code.data(0), code.data(2), code.data(6)
        into, here, left_pitch, there, right_pitch = args[1], args[3], args[4], args[7], args[8]
        rows, left_row, right_row, vectors = args[10:14]
        sums = code.places(many * taps)
        spots = [code.at(out, builder.mul(builder.add(into, code.integer(k)), code.integer(code.width)))
                 for k in range(many * taps)]
        for place, spot in zip(sums, spots):
            builder.store(code.load(spot), place)
        with cgutils.for_range(builder, rows) as row:
            a = code.at(one, here, builder.mul(row.index, left_row))
            b = code.at(two, there, builder.mul(row.index, right_row))
            with cgutils.for_range(builder, vectors) as loop:
                shift = builder.mul(loop.index, code.integer(code.width))
                factor = lambda j: code.load(code.at(a, shift, builder.mul(left_pitch, code.integer(j))))
                value = lambda k: code.load(code.at(b, shift, builder.mul(right_pitch, code.integer(k))))
                # the shorter side stays in registers, the longer one passes: sums and both would be too many
                few, pass_by = (factor, value) if many < taps else (value, factor)
                kept = [few(k) for k in range(min(many, taps))]
                for other in range(max(many, taps)):
                    passing = pass_by(other)
                    for k, held in enumerate(kept):
                        code.add_product(sums[k * taps + other if many < taps else other * taps + k], held, passing)
        for place, spot in zip(sums, spots):
            code.store(builder.load(place), spot)
        return context.get_dummy_value()

    return types.none(acc, into, left, here, left_pitch, m, right, there, right_pitch, t, rows, left_row, right_row,
                      vectors), codegen


@intrinsic
def through(typingctx, dst, at, plane, src, here, offsets, first_tap, t, w, record, channels, floor, vectors):
    """dst[at + k*plane + x] = sum over c of w2[c, k] * max(h[c, x], floor).

    h[c, x] = b[c] + sum over j of w1[c, j] * src[here + offset(j) + x]; offset(j) = offsets[first_tap + j]
    for the K taps of `t`. Weights: w[record + c*(2K + 1) + ...] = b, w1's K, w2's K.
    `channels` must be a multiple of CHANNELS. NaN stays NaN.
    """
    taps = len(t)

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        out, source, table, weight = (code.data(k) for k in (0, 3, 5, 8))
        at, plane, here, tap0, first, channels, vectors = (args[k] for k in (1, 2, 4, 6, 9, 10, 12))
        floor = code.everywhere(args[11])
        shifts = [code.load_one(table, tap0, k) for k in range(taps)]
        done = cgutils.alloca_once_value(builder, code.integer(0))

        def block(unroll):
            position = builder.load(done)
            shift = builder.mul(position, code.integer(code.width))
            near = [code.at(source, here, shift, s) for s in shifts]
            sums = code.places(taps * unroll)
            for place in sums:
                builder.store(ir.Constant(code.vector, None), place)
            with cgutils.for_range_slice(builder, code.integer(0), channels, code.integer(CHANNELS)) as (c, _):
                rows = [code.at(weight, first, builder.mul(builder.add(c, code.integer(r)), code.integer(2 * taps + 1)))
                        for r in range(CHANNELS)]
                hidden = [[code.spread(row)] * unroll for row in rows]
                for k in range(taps):
                    values = [code.load(code.at(near[k], code.integer(v * code.width))) for v in range(unroll)]
                    for r, row in enumerate(rows):
                        factor = code.spread(code.at(row, code.integer(1 + k)))
                        hidden[r] = [code.fma(x, factor, h) for x, h in zip(values, hidden[r])]
                hidden = [[code.at_least(h, floor) for h in line] for line in hidden]
                for r, row in enumerate(rows):
                    for k in range(taps):
                        factor = code.spread(code.at(row, code.integer(1 + taps + k)))
                        for v in range(unroll):
                            code.add_product(sums[k * unroll + v], hidden[r][v], factor)
            for k in range(taps):
                line = code.at(out, at, builder.mul(plane, code.integer(k)), shift)
                for v in range(unroll):
                    code.store(builder.load(sums[k * unroll + v]), code.at(line, code.integer(v * code.width)))
            builder.store(builder.add(position, code.integer(unroll)), done)

        for unroll in dict.fromkeys((THROUGH.get(taps, 1), 1)):
            with While(builder, done, vectors, unroll):
                block(unroll)
        return context.get_dummy_value()

    return types.none(dst, at, plane, src, here, offsets, first_tap, t, w, record, channels, floor, vectors), codegen


@intrinsic
def halfway(typingctx, dst, into, slope_at, pitch, left, right, offsets, left_tap, right_tap, taps, w, record, channels,
            floor, vectors):
    """What the gradients of `through` are found from: the hidden channels, and the gradient of their sums.

        dst[into + c*pitch + x]     = max(h[c, x], floor)
        dst[slope_at + c*pitch + x] = sum over k of w2[c, k] * dst[right + offsets[right_tap + k] + x] where h > floor

    and 0 elsewhere; h[c, x] = b[c] + sum over k of w1[c, k] * dst[left + offsets[left_tap + k] + x]. Weights and
    channels as in `through`.
    """

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        space, table, weight = code.data(0), code.data(6), code.data(10)
        into, slope_at, pitch, left, right = args[1:6]
        left_tap, right_tap, taps, first, channels, vectors = (args[k] for k in (7, 8, 9, 11, 12, 14))
        floor = code.everywhere(args[13])
        size = builder.add(builder.mul(taps, code.integer(2)), code.integer(1))
        done = cgutils.alloca_once(builder, ir.IntType(64))

        def block(c, unroll):
            position = builder.load(done)
            shift = builder.mul(position, code.integer(code.width))
            rows = [code.at(weight, first, builder.mul(builder.add(c, code.integer(r)), size)) for r in range(CHANNELS)]
            hidden, slopes = code.places(CHANNELS * unroll), code.places(CHANNELS * unroll)
            for r in range(CHANNELS):
                for v in range(unroll):
                    builder.store(code.spread(rows[r]), hidden[r * unroll + v])
                    builder.store(ir.Constant(code.vector, None), slopes[r * unroll + v])
            with cgutils.for_range(builder, taps) as loop:
                second = builder.add(taps, code.integer(1))
                for start, tap, places, skip in ((left, left_tap, hidden, code.integer(1)),
                                                 (right, right_tap, slopes, second)):
                    near = code.at(space, start, shift, code.load_one(table, tap, loop.index))
                    values = [code.load(code.at(near, code.integer(v * code.width))) for v in range(unroll)]
                    for r, row in enumerate(rows):
                        factor = code.spread(code.at(row, skip, loop.index))
                        for v in range(unroll):
                            code.add_product(places[r * unroll + v], values[v], factor)
            for r in range(CHANNELS):
                line = builder.add(shift, builder.mul(pitch, builder.add(c, code.integer(r))))
                for v in range(unroll):
                    here = builder.add(line, code.integer(v * code.width))
                    h, d = (builder.load(places[r * unroll + v]) for places in (hidden, slopes))
                    below = builder.fcmp_ordered("<=", h, floor)
                    code.store(builder.select(below, ir.Constant(code.vector, None), d), code.at(space, slope_at, here))
                    code.store(code.at_least(h, floor), code.at(space, into, here))
            builder.store(builder.add(position, code.integer(unroll)), done)

        with cgutils.for_range_slice(builder, code.integer(0), channels, code.integer(CHANNELS)) as (c, _):
            builder.store(code.integer(0), done)
            for unroll in HALFWAY:
                with While(builder, done, vectors, unroll):
                    block(c, unroll)
        return context.get_dummy_value()

    return types.none(dst, into, slope_at, pitch, left, right, offsets, left_tap, right_tap, taps, w, record, channels,
                      floor, vectors), codegen


@intrinsic
def take_row(typingctx, dst, at, src, row, low, n, vectors):
    """dst[at + i] = src[row + low + i] where 0 <= low + i < n, else 0; for i < vectors * lanes."""

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        out, source = code.data(0), code.data(2)
        at, row, low, n, vectors = (args[k] for k in (1, 3, 4, 5, 6))
        steps = ir.Constant(ir.VectorType(ir.IntType(64), code.width), list(range(code.width)))
        flags = ir.VectorType(ir.IntType(1), code.width)
        kind = ir.FunctionType(code.vector, [code.vector.as_pointer(), ir.IntType(32), flags, code.vector])
        letter = "f32" if code.size == 4 else "f64"
        load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{code.width}{letter}.p0")
        nothing, size = ir.Constant(code.vector, None), ir.Constant(ir.IntType(32), code.size)
        with cgutils.for_range(builder, vectors) as loop:
            shift = builder.mul(loop.index, code.integer(code.width))
            cell = builder.add(low, shift)
            cells = builder.add(code.everywhere(cell), steps)
            inside = builder.icmp_unsigned("<", cells, code.everywhere(n))  # below 0: beyond everything
            place = builder.bitcast(code.at(source, row, cell), code.vector.as_pointer())
            code.store(builder.call(load, [place, size, inside, nothing]), code.at(out, at, shift))
        return context.get_dummy_value()

    return types.none(dst, at, src, row, low, n, vectors), codegen


@intrinsic
def add_rows(typingctx, dst, to, src, at, step, rows, fresh, start, vectors):
    """dst[to + x] = start if fresh, else what it was, + sum over j < rows of src[at + j*step + x]; whole vectors."""

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        out, source = code.data(0), code.data(2)
        to, at, step, rows, fresh, vectors = (args[k] for k in (1, 3, 4, 5, 6, 8))
        start = code.everywhere(args[7])
        with cgutils.for_range(builder, vectors) as loop:
            shift = builder.mul(loop.index, code.integer(code.width))
            there = code.at(out, to, shift)
            place = cgutils.alloca_once(builder, code.vector)
            builder.store(builder.select(fresh, start, code.load(there)), place)
            with cgutils.for_range(builder, rows) as row:
                value = code.load(code.at(source, at, builder.mul(row.index, step), shift))
                builder.store(builder.fadd(builder.load(place), value), place)
            code.store(builder.load(place), there)
        return context.get_dummy_value()

    return types.none(dst, to, src, at, step, rows, fresh, start, vectors), codegen


@intrinsic
def fetch(typingctx, src, at, count, write):
    """Have the cache lines of src[at ... at + count] brought near; `write`: () or (0,) if they are to be written."""
    kind, writes = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3]), len(write)

    def codegen(context, builder, sig, args):
        code = _Code(context, builder, sig, args)
        source, step = code.data(0), code.integer(64 // code.size)
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(ir.IntType(32), k) for k in (int(writes > 0), 2, 1)]
        lines = builder.sdiv(builder.add(args[2], builder.sub(step, code.integer(1))), step)
        with cgutils.for_range(builder, lines) as loop:
            place = code.at(source, args[1], builder.mul(loop.index, step))
            builder.call(call, [builder.bitcast(place, ir.IntType(8).as_pointer()), *how])
        return context.get_dummy_value()

    return types.none(src, at, count, write), codegen


@intrinsic
def _pointer(typingctx, address, like):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(types.int64, like), codegen


@njit(**FLAGS)
def array_at(address, count, like):
    """The array of `count` numbers of the type of `like` at an address; who has the memory must keep it."""
    return carray(_pointer(address, like), count)


__all__ = ["BLOCKS", "CHANNELS", "FUSED", "UNROLL", "VECTOR_BYTES", "While", "add_rows", "array_at", "correlate",
           "fetch", "halfway", "lanes", "multiply", "take_row", "through"]
