"""Two matrix products on rows in cache, written in LLVM's vectors: what convolutions are made of.

    multiply    dst[m, x] = first[m] + sum over t of  w[t, m] * src[x + offsets[t]]      a block of M rows at once
    correlate   acc[m, t] += sum over x of  left[m, x] * right[t, x]                     a block of M x T at once

A convolution is `multiply` with a table of offsets, one for each tap: the table holds the whole geometry (channels,
axes, dilation). The gradient of its weights is `correlate`. All numbers of a block stay in registers while the sum
runs. LLVM's own vectoriser cannot do this: it vectorises the innermost loop, which here is the sum over taps.

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

    def add_product(self, place, a, b):
        product = self.builder.fmul(a, b, flags=("contract",))
        self.builder.store(self.builder.fadd(self.builder.load(place), product, flags=("contract",)), place)


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
                factors = [code.load(code.at(a, shift, builder.mul(left_pitch, code.integer(k)))) for k in range(many)]
                for k in range(taps):
                    value = code.load(code.at(b, shift, builder.mul(right_pitch, code.integer(k))))
                    for j in range(many):
                        code.add_product(sums[j * taps + k], factors[j], value)
        for place, spot in zip(sums, spots):
            code.store(builder.load(place), spot)
        return context.get_dummy_value()

    return types.none(acc, into, left, here, left_pitch, m, right, there, right_pitch, t, rows, left_row, right_row,
                      vectors), codegen


@intrinsic
def _pointer(typingctx, address, like):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(types.int64, like), codegen


@njit(**FLAGS)
def array_at(address, count, like):
    """The array of `count` numbers of the type of `like` at an address; who has the memory must keep it."""
    return carray(_pointer(address, like), count)


__all__ = ["BLOCKS", "UNROLL", "VECTOR_BYTES", "While", "array_at", "correlate", "lanes", "multiply"]
