"""Small matrix products in registers, written as vector instructions for Numba to inline.

Matrices are cut into panels of `lanes()` columns: three vectors of the widest registers there are. A panel of K rows
lies in one piece, (K, lanes), so that a product reads memory in order. Two products are enough for a network and its
adjoint, with points along the columns:

    times      c[r, :] = start[r] + sum over k of a[k, r] b[k, :]        rows of a and c in groups of 8, 4, 2 and 1
    outer_add  g[r, s] += sum over panels and columns of a[r, :] b[s, :]    in blocks of 4 x 4 and less

A block of 8 rows and 3 vectors needs 24 accumulators, 3 vectors and a broadcast: the 32 registers of AVX-512. With 16
registers (AVX2, and any other machine) a group has 4 rows. LLVM would find neither by itself.

Sums are formed in one order, whatever the number of threads: every result is the same bits again. Arrays are flat and
places are offsets into them.
"""

import math

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastdiff.kernels._jit import inner

try:
    _FEATURES = llvm.get_host_cpu_features()
except RuntimeError:  # a processor that LLVM does not know
    _FEATURES = {}
BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
ROWS = 8 if BYTES == 64 else 4
VECTORS = 3
TALL, WIDE = (4, 4) if BYTES == 64 else (2, 4)  # a block of `outer_add`
_I64 = ir.IntType(64)


def lanes_of(dtype) -> int:
    """Columns of a panel for a NumPy dtype."""
    return VECTORS * BYTES // dtype.itemsize


def _vector(kind):
    """The vector type of a Numba float type, its length, its element type."""
    element = ir.FloatType() if kind == types.float32 else ir.DoubleType()
    count = BYTES * 8 // kind.bitwidth
    return ir.VectorType(element, count), count, element


def _data(context, builder, kind, value):
    return context.make_array(kind)(context, builder, value).data


def _load(builder, pointer, vector, align):
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=align)


def _store(builder, value, pointer, align):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)


def _splat(builder, scalar, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _loop(builder, count, carried, body):
    """for k in range(count): carried = body(k, carried); return the last `carried`. Nothing goes through memory."""
    function, before = builder.function, builder.block
    head, inside, done = (function.append_basic_block(f"block.{name}") for name in ("head", "inside", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(_I64)
    values = [builder.phi(v.type) for v in carried]
    builder.cbranch(builder.icmp_signed("<", k, count), inside, done)
    builder.position_at_end(inside)
    new = body(k, values)
    k.add_incoming(_I64(0), before)
    k.add_incoming(builder.add(k, _I64(1)), builder.block)
    for phi, start, value in zip(values, carried, new):
        phi.add_incoming(start, before)
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return values


# -- c = start + a^T b -----------------------------------------------------------------------------------------------


def _product(rows):
    """The intrinsic for `rows` rows of a product."""

    @intrinsic
    def block(typingctx, depth, a, at, lda, b, bt, c, ct, start, st, use):
        kind = c.dtype
        align = kind.bitwidth // 8

        def codegen(context, builder, sig, args):
            vector, count, _ = _vector(kind)
            depth, a, at, lda, b, bt, c, ct, start, st, use = args
            pa, pb, pc, ps = (_data(context, builder, sig.args[k], args[k]) for k in (1, 4, 6, 8))
            zero = ir.Constant(vector, None)
            first = []
            for r in range(rows):
                value = builder.load(builder.gep(ps, [builder.add(st, builder.mul(_I64(r), use))]))
                used = builder.icmp_signed("!=", use, _I64(0))
                first += [builder.select(used, _splat(builder, value, vector), zero)] * VECTORS
            left, right = builder.gep(pa, [at]), builder.gep(pb, [bt])

            def step(k, sums):
                row = builder.gep(left, [builder.mul(k, lda)])
                panel = builder.gep(right, [builder.mul(k, _I64(VECTORS * count))])
                parts = [_load(builder, builder.gep(panel, [_I64(v * count)]), vector, align) for v in range(VECTORS)]
                new = []
                for r in range(rows):
                    weight = _splat(builder, builder.load(builder.gep(row, [_I64(r)])), vector)
                    new += [_multiply_add(builder, weight, parts[v], sums[r * VECTORS + v]) for v in range(VECTORS)]
                return new

            sums = _loop(builder, depth, first, step)
            for n, value in enumerate(sums):
                _store(builder, value, builder.gep(pc, [builder.add(ct, _I64(n * count))]), align)
            return context.get_dummy_value()

        i8 = types.int64
        return types.none(i8, a, i8, i8, b, i8, c, i8, start, i8, i8), codegen

    block.__doc__ = f"""{rows} rows of `times`.

    c[ct + r lanes + v] = start[st + r] + sum over k < depth of a[at + k lda + r] b[bt + k lanes + v]; without `start`
    where `use` is 0.
    """
    return block


product_8, product_4, product_2, product_1 = (_product(rows) for rows in (8, 4, 2, 1))


# -- g += a b^T ------------------------------------------------------------------------------------------------------


def _shuffled(builder, a, b, places):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    return builder.shuffle_vector(a, b, mask)


def _pair(builder, a, b, parts):
    """Halve the `parts` segments of each of two vectors by adding; a's segments come first."""
    n = a.type.count
    size = n // parts
    places = [k * size + j for k in range(2 * parts) for j in range(size)]
    low = [p for p in places if p % size < size // 2]
    high = [p for p in places if p % size >= size // 2]
    return builder.fadd(_shuffled(builder, a, b, low), _shuffled(builder, a, b, high))


def _outer(rows, columns):
    """The intrinsic for a block of rows x columns."""

    @intrinsic
    def block(typingctx, panels, a, at, lda, b, bt, ldb, g, gt, ldg):
        kind = g.dtype
        align = kind.bitwidth // 8

        def codegen(context, builder, sig, args):
            vector, count, _ = _vector(kind)
            panels, a, at, lda, b, bt, ldb, g, gt, ldg = args
            pa, pb, pg = (_data(context, builder, sig.args[k], args[k]) for k in (1, 4, 7))
            left, right = builder.gep(pa, [at]), builder.gep(pb, [bt])
            width = VECTORS * count

            def step(k, sums):
                rowa, rowb = builder.gep(left, [builder.mul(k, lda)]), builder.gep(right, [builder.mul(k, ldb)])
                for v in range(VECTORS):
                    xs = [_load(builder, builder.gep(rowa, [_I64(r * width + v * count)]), vector, align)
                          for r in range(rows)]
                    ys = [_load(builder, builder.gep(rowb, [_I64(s * width + v * count)]), vector, align)
                          for s in range(columns)]
                    sums = [_multiply_add(builder, xs[n // columns], ys[n % columns], sums[n])
                            for n in range(rows * columns)]
                return sums

            sums = _loop(builder, panels, [ir.Constant(vector, None)] * (rows * columns), step)
            _add_totals(builder, _totals(builder, sums), rows, columns, pg, gt, ldg, align)
            return context.get_dummy_value()

        i8 = types.int64
        return types.none(i8, a, i8, i8, b, i8, i8, g, i8, i8), codegen

    block.__doc__ = f"""A {rows} x {columns} block of `outer_add`.

    g[gt + r ldg + s] += sum over p < panels and the panel's columns v of a[at + p lda + r lanes + v]
    b[bt + p ldb + s lanes + v].
    """
    return block


def _totals(builder, vectors):
    """The sums of the elements of each vector, in order, packed into vectors; pairs share their additions."""
    n, totals = vectors[0].type.count, []
    for first in range(0, len(vectors), n):
        some, parts = vectors[first : first + n], 1
        while parts < n:  # a vector without partner is paired with itself: its sums come first
            some = [_pair(builder, some[k], some[(k + 1) % len(some)], parts) for k in range(0, len(some), 2)]
            parts *= 2
        totals += some
    return totals


def _add_totals(builder, totals, rows, columns, pg, gt, ldg, align):
    """Add a block of sums to the matrix g, a row at a time."""
    n = totals[0].type.count
    width = min(columns, n)
    for k in range(0, rows * columns, width):
        place = builder.add(gt, builder.add(builder.mul(_I64(k // columns), ldg), _I64(k % columns)))
        place = builder.gep(pg, [place])
        part = _shuffled(builder, totals[k // n], totals[k // n], [k % n + j for j in range(width)])
        _store(builder, builder.fadd(_load(builder, place, part.type, align), part), place, align)


outer_4x4, outer_4x1, outer_1x4, outer_1x1 = (_outer(r, s) for r in (TALL, 1) for s in (WIDE, 1))


@intrinsic
def lanes(typingctx, array):
    """Columns of a panel: a constant for the compiler."""

    def codegen(context, builder, sig, args):
        return context.get_constant(types.int64, VECTORS * BYTES * 8 // sig.args[0].dtype.bitwidth)

    return types.int64(array), codegen


@intrinsic
def get(typingctx, array, place):
    """array[place] for a place that is not negative."""

    def codegen(context, builder, sig, args):
        return builder.load(builder.gep(_data(context, builder, sig.args[0], args[0]), [args[1]]))

    return array.dtype(array, types.int64), codegen


@intrinsic
def put(typingctx, array, place, value):
    """array[place] = value for a place that is not negative."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], builder.gep(_data(context, builder, sig.args[0], args[0]), [args[1]]))
        return context.get_dummy_value()

    return types.none(array, types.int64, array.dtype), codegen


@intrinsic
def row_sum(typingctx, array, place):
    """The sum of one row of a panel."""

    def codegen(context, builder, sig, args):
        vector, count, _ = _vector(sig.args[0].dtype)
        row = builder.gep(_data(context, builder, sig.args[0], args[0]), [args[1]])
        parts = [_load(builder, builder.gep(row, [_I64(v * count)]), vector, 4) for v in range(VECTORS)]
        total = parts[0]
        for part in parts[1:]:
            total = builder.fadd(total, part)
        return builder.extract_element(_totals(builder, [total])[0], ir.Constant(ir.IntType(32), 0))

    return array.dtype(array, types.int64), codegen


@inner
def times(panels, depth, rows, a, at, lda, b, bt, c, ct, start, st, every):
    """c = start + a^T b for panels (depth, lanes) of b and (rows, lanes) of c; a is (depth, lda).

    `start`, a number for each row, is added to the panels 0, every, 2 every, ...; every = 0: to none.
    """
    width = lanes(b)
    for n in range(panels):
        use = np.int64(1) if every > 0 and n % every == 0 else np.int64(0)
        r = np.int64(0)
        if ROWS == 8:
            while r + 8 <= rows:
                product_8(depth, a, at + r, lda, b, bt, c, ct + r * width, start, st + r * use, use)
                r += 8
        while r + 4 <= rows:
            product_4(depth, a, at + r, lda, b, bt, c, ct + r * width, start, st + r * use, use)
            r += 4
        if r + 2 <= rows:
            product_2(depth, a, at + r, lda, b, bt, c, ct + r * width, start, st + r * use, use)
            r += 2
        if r < rows:
            product_1(depth, a, at + r, lda, b, bt, c, ct + r * width, start, st + r * use, use)
        bt += depth * width
        ct += rows * width


@inner
def outer_add(panels, rows, columns, a, at, b, bt, g, gt):
    """g (rows, columns) += sum over panels of a b^T, for panels (rows, lanes) of a and (columns, lanes) of b."""
    width = lanes(a)
    lda, ldb = rows * width, columns * width
    r = np.int64(0)
    while r < rows:
        tall = r + TALL <= rows
        s = np.int64(0)
        while s < columns:
            wide = s + WIDE <= columns
            pa, pb, pg = at + r * width, bt + s * width, gt + r * columns + s
            if tall and wide:
                outer_4x4(panels, a, pa, lda, b, pb, ldb, g, pg, columns)
            elif tall:
                outer_4x1(panels, a, pa, lda, b, pb, ldb, g, pg, columns)
            elif wide:
                outer_1x4(panels, a, pa, lda, b, pb, ldb, g, pg, columns)
            else:
                outer_1x1(panels, a, pa, lda, b, pb, ldb, g, pg, columns)
            s += WIDE if wide else 1
        r += TALL if tall else 1


# -- one row of a panel at a time ------------------------------------------------------------------------------------


class _Row:
    """A vector of a row while an expression is written."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def _with(self, other, name):
        value = other.value if isinstance(other, _Row) else ir.Constant(self.value.type, [float(other)] *
                                                                        self.value.type.count)
        return _Row(self.builder, getattr(self.builder, name)(self.value, value, flags=("contract",)))

    def __add__(self, other):
        return self._with(other, "fadd")

    def __sub__(self, other):
        return self._with(other, "fsub")

    def __mul__(self, other):
        return self._with(other, "fmul")


def _rowwise(inputs, outputs, doc):
    """Decorator: `f(*rows) -> rows` becomes an intrinsic `(array, places)`: offsets of inputs, then outputs."""

    def wrap(function):
        @intrinsic
        def operation(typingctx, array, places):
            def codegen(context, builder, sig, args):
                vector, count, _ = _vector(sig.args[0].dtype)
                align = sig.args[0].dtype.bitwidth // 8
                base = _data(context, builder, sig.args[0], args[0])
                rows = [builder.gep(base, [place]) for place in cgutils.unpack_tuple(builder, args[1])]
                for v in range(VECTORS):  # a vector at a time: fewer registers are alive
                    spots = [builder.gep(row, [_I64(v * count)]) for row in rows]
                    made = function(*(_Row(builder, _load(builder, p, vector, align)) for p in spots[:inputs]))
                    for row, spot in zip(made if isinstance(made, tuple) else (made,), spots[inputs:], strict=True):
                        _store(builder, row.value, spot, align)
                return context.get_dummy_value()

            return types.none(array, types.UniTuple(types.int64, inputs + outputs)), codegen

        operation.__doc__ = doc
        return operation

    return wrap


row_copy = _rowwise(1, 1, "d = a")(lambda a: a)
row_negate = _rowwise(1, 1, "d = -a")(lambda a: a * -1.0)
row_mul = _rowwise(2, 1, "d = a b")(lambda a, b: a * b)
row_mul3 = _rowwise(3, 1, "d = a b c")(lambda a, b, c: (a * b) * c)
row_mul_add = _rowwise(3, 1, "d = a b + c")(lambda a, b, c: a * b + c)
row_mul3_add = _rowwise(4, 1, "d = a b c + e")(lambda a, b, c, e: (a * b) * c + e)
row_two = _rowwise(4, 1, "d = a b + c e")(lambda a, b, c, e: a * b + c * e)


@_rowwise(7, 4, "What a second-derivative channel adds to v; sigma'' h-; its h; its z-.")
def row_second(d1, d2, d3, q, z, b, v):
    return (d2 * z + d3 * q) * b + v, d2 * b, d1 * z + d2 * q, d1 * b


def _tanh_slopes(s):
    p = (s * -1.0 + 1.0) * (s + 1.0)
    return p, s * p * -2.0, p * (s * s * 6.0 - 2.0)


row_tanh = _rowwise(1, 3, "First to third derivative of tanh, from its value.")(_tanh_slopes)


@_rowwise(2, 4, "z sigmoid(z) and its first to third derivative, from z and g = sigmoid(z).")
def row_silu(z, g):
    g1 = g * (g * -1.0 + 1.0)
    g2 = g1 * (g * -2.0 + 1.0)
    g3 = g2 * (g * -2.0 + 1.0) - g1 * g1 * 2.0
    return z * g, z * g1 + g, z * g2 + g1 * 2.0, z * g3 + g2 * 3.0


@_rowwise(3, 4, "z Phi(z) and its first to third derivative, from z, e = erf(z/sqrt(2)) and f = exp(-z^2/2).")
def row_gelu(z, e, f):
    cdf, pdf, square = e * 0.5 + 0.5, f * (1.0 / math.sqrt(2.0 * math.pi)), z * z
    return z * cdf, z * pdf + cdf, pdf * (square * -1.0 + 2.0), pdf * z * (square - 4.0)


# -- activations of jets with one second channel: h_s with terms a_k z_k^2 ---------------------------------------------


def _bent(factors, firsts):
    """(sum of a z^2, the products a z)."""
    scaled = [a * z for a, z in zip(factors, firsts)]
    q = scaled[0] * firsts[0]
    for az, z in zip(scaled[1:], firsts[1:]):
        q = az * z + q
    return q, scaled


def _push(d1, d2, rest):
    count = len(rest) // 2
    factors, firsts, second = rest[:count], rest[count:-1], rest[-1]
    q, _ = _bent(factors, firsts)
    return *[d1 * z for z in firsts], d1 * second + d2 * q


def _pull(value, d1, d2, d3, rest):
    count = (len(rest) - 3) // 3
    factors, firsts, zs = rest[:count], rest[count : 2 * count], rest[2 * count]
    b, bars, bs = rest[2 * count + 1], rest[2 * count + 2 : -1], rest[-1]
    q, scaled = _bent(factors, firsts)
    moved = zs * bs
    for z, c in zip(firsts, bars):
        moved = z * c + moved
    e = d2 * bs
    return (value, *[d1 * z for z in firsts], d1 * zs + d2 * q, d1 * b + d2 * moved + d3 * q * bs,
            *[d1 * c + e * az * 2.0 for c, az in zip(bars, scaled)], d1 * bs)


def _fused(count):
    """Rows of `count` first channels: (push, pull) of any activation by its slopes, (push, pull) of tanh by its value.

    push   d1, d2 (or s), each a, each z, z_s -> each h, h_s
    pull   value, d1, d2, d3 (or s), each a, each z, z_s, h-, each h-_k, h-_s -> h, each h_k, h_s, z-, each z-_k, z-_s
    """
    wide, size = 2 * count + 1, 3 * count + 3
    return (_rowwise(2 + wide, count + 1, "h of jets, from slopes")(lambda d1, d2, *rest: _push(d1, d2, rest)),
            _rowwise(4 + size, 2 * count + 4, "z- and h, from slopes")(lambda *all: _pull(*all[:4], all[4:])),
            _rowwise(1 + wide, count + 1, "h of jets of tanh")(lambda s, *rest: _push(*_tanh_slopes(s)[:2], rest)),
            _rowwise(1 + size, 2 * count + 4, "z- and h of tanh")(lambda s, *rest: _pull(s, *_tanh_slopes(s), rest)))


push_1, pull_1, push_tanh_1, pull_tanh_1 = _fused(1)
push_2, pull_2, push_tanh_2, pull_tanh_2 = _fused(2)
push_3, pull_3, push_tanh_3, pull_tanh_3 = _fused(3)


@_rowwise(5, 3, "r = c u + v - f, w r and c w r, from c, f, w, u, v.")
def row_residual(c, f, w, u, v):
    r = c * u + v - f
    return r, w * r, c * (w * r)
