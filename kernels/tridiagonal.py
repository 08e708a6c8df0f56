"""Many tridiagonal systems at once: Thomas' algorithm with one line a vector lane, periodic by Sherman-Morrison.

    lower_i x_{i-1} + diag_i x_i + upper_i x_{i+1} = r_i,   i = 0 ... n-1

    forward   q_i = 1/(diag_i - lower_i c_{i-1}),  c_i = upper_i q_i,  d_i = (r_i - lower_i d_{i-1}) q_i
    backward  x_i = d_i - c_i x_{i+1}

lower_0 and upper_{n-1} are not used, or couple the ends of a cyclic line: then x = y - z (y_0 + v y_{n-1}) /
(1 + z_0 + v z_{n-1}) with T y = r, T z = (g, 0, ..., 0, upper_{n-1}), g = -diag_0, v = lower_0/g, and T the matrix
with diag_0 - g and diag_{n-1} - v upper_{n-1} and without the corners. No pivoting: the matrix must be diagonally
dominant, or symmetric and definite. 3 additions and multiplications a cell in each direction.

Lines run along one axis of an array, seen as (outer, n, inner). A block of `width` lines is eliminated in scratch
memory that stays in the second-level cache, so memory is read once and written once; lines along the contiguous axis
(inner = 1) are transposed on the way in and out. Coefficients: (n,) or (groups, n) shared by the lines of a group of
outer indices, factored once; or one of each for each cell.

Source: Press et al., Numerical Recipes, 3rd ed., Cambridge 2007, sections 2.4.1 and 2.7.2; Golub, Van Loan, Matrix
Computations, 4th ed., section 4.3.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._jit import (
    atomic_add,
    borrow,
    flush_denormals,
    inner,
    keep_apart,
    kernel,
    restore_denormals,
    wide_vectors,
)
from fastdiff.kernels._memory import empty, empty_like
from fastdiff.kernels._run import SECOND, THIRD
from fastdiff.kernels._stream import finish_stream
from fastdiff.kernels._threads import default_threads, scratch, together
from fastdiff.kernels._tiles import VECTOR_BYTES, While

BLOCK_BYTES = 1 << 19  # of a block of lines in scratch memory: half of a second-level cache
LEAST, MOST = 16, 256  # lines of a block
STRIP = 64  # rows of a block that are brought in, or taken out, at a time: whole vectors
SIDE_BY_SIDE = 8, 4, 2, 1  # vectors of lines: as many as hide what one addition waits for the last
AHEAD = 8  # rows that are asked for ahead of time
NEAR = SECOND // 4  # of less nothing is asked for ahead
PAST = THIRD // 2  # results of more bytes go past the caches


class Factors(NamedTuple):
    """Systems made ready: shared ones are factored, those with their own coefficients are only laid out.

    shared  whether lines share coefficients; then a is lower*q, b is q, c is upper*q, each (groups, n), and z (groups,
            n) the solution for the corners. Otherwise a, b, c are lower, diag, upper as (outer, n, inner), with the
            contiguous axis swapped to the front of its plane if inner is 1
    v, w    of a cyclic line, (groups,): the weight of y_{n-1}, and 1/(1 + z_0 + v z_{n-1})
    """

    a: Any
    b: Any
    c: Any
    z: Any
    v: Any
    w: Any


def reference(lower, diag, upper, u, axis, cyclic, out=None):
    """Dense elimination of every line in NumPy, float64."""
    r = np.moveaxis(np.asarray(u, np.float64), axis, -1)
    a, b, c = (np.broadcast_to(np.asarray(t, np.float64) if np.ndim(t) == 1 else np.moveaxis(
        np.asarray(t, np.float64), axis, -1), r.shape) for t in (lower, diag, upper))
    n, k = r.shape[-1], np.arange(r.shape[-1])
    dense = np.zeros((*r.shape, n))
    dense[..., k, k] += b
    for i in range(n):
        if i > 0 or cyclic:
            dense[..., i, (i - 1) % n] += a[..., i]
        if i < n - 1 or cyclic:
            dense[..., i, (i + 1) % n] += c[..., i]
    x = np.moveaxis(np.linalg.solve(dense, r[..., None])[..., 0], -1, axis)
    if out is None:
        return x
    out[...] = x
    return out


# -- the hot loops ---------------------------------------------------------------------------------------------------


@intrinsic
def _transpose(typingctx, dst, at, pitch, src, here, src_pitch):
    """A square of whole vectors: dst[at + i*pitch + x] = src[here + x*src_pitch + i], in registers."""

    def codegen(context, builder, sig, args):
        kind = sig.args[0].dtype
        size, count = kind.bitwidth // 8, VECTOR_BYTES * 8 // kind.bitwidth
        vector, number = ir.VectorType(context.get_data_type(kind), count), ir.IntType(32)

        def place(array, start, step, k):
            index = builder.add(args[start], builder.mul(args[step], ir.Constant(ir.IntType(64), k)))
            data = context.make_array(sig.args[array])(context, builder, args[array]).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        rows = [builder.load(place(3, 4, 5, k), align=size) for k in range(count)]
        m = 1
        while m < count:  # squares of m x m change places across the diagonal of squares twice as large
            low = ir.Constant(ir.VectorType(number, count), [j if not j & m else count + j - m for j in range(count)])
            high = ir.Constant(ir.VectorType(number, count), [j + m if not j & m else count + j for j in range(count)])
            for k in (k for k in range(count) if not k & m):
                a, b = rows[k], rows[k + m]
                rows[k], rows[k + m] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
            m *= 2
        for k, row in enumerate(rows):
            builder.store(row, place(0, 1, 2, k), align=size)
        return context.get_dummy_value()

    return types.none(dst, types.uint64, types.uint64, src, types.uint64, types.uint64), codegen


@kernel()
def transposed(dst, at, pitch, src, here, src_pitch, rows, count):
    """dst[at + i*pitch + x] = src[here + x*src_pitch + i] for i < rows and x < count.

    Along the lines of the array where these are far apart: they may all want the same places of the first cache.
    """
    at, pitch, here, src_pitch = np.uint64(at), np.uint64(pitch), np.uint64(here), np.uint64(src_pitch)
    rows, count, side, zero = np.uint64(rows), np.uint64(count), np.uint64(VECTOR_BYTES // dst.itemsize), np.uint64(0)
    whole, full = rows // side * side, count // side * side
    if src_pitch > pitch:
        for x in range(zero, full, side):
            for i in range(zero, whole, side):
                _transpose(dst, at + i * pitch + x, pitch, src, here + x * src_pitch + i, src_pitch)
    else:
        for i in range(zero, whole, side):
            for x in range(zero, full, side):
                _transpose(dst, at + i * pitch + x, pitch, src, here + x * src_pitch + i, src_pitch)
    for i in range(rows):
        for x in range(full if i < whole else zero, count):
            dst[at + i * pitch + x] = src[here + x * src_pitch + i]


class _Sweep:
    """Code that goes along lines, vectors of them side by side, with what one row hands to the next in registers."""

    def __init__(self, context, builder, sig, args, names):
        self.context, self.builder = context, builder
        self.value, self.type = dict(zip(names, args)), dict(zip(names, sig.args))
        self.kind = sig.args[0].dtype
        self.size = self.kind.bitwidth // 8
        self.width = VECTOR_BYTES // self.size
        self.number = context.get_data_type(self.kind)
        self.vector, self.count = ir.VectorType(self.number, self.width), ir.IntType(64)

    def integer(self, value):
        return ir.Constant(self.count, value)

    def zeros(self):
        return ir.Constant(self.vector, [0.0] * self.width)

    def pointer(self, array, index):
        """Where a vector at `array[index]` lies."""
        data = self.context.make_array(self.type[array])(self.context, self.builder, self.value[array]).data
        return self.builder.bitcast(self.builder.gep(data, [index]), self.vector.as_pointer())

    def load(self, array, index, mask=None):
        place = self.pointer(array, index)
        if mask is None:
            return self.builder.load(place, align=self.size)
        function = self._masked("load", self.vector, [place.type, ir.IntType(32), mask.type, self.vector])
        return self.builder.call(function, [place, ir.IntType(32)(self.size), mask, self.zeros()])

    def store(self, value, array, index, mask=None, past=False):
        place = self.pointer(array, index)
        if mask is not None:
            function = self._masked("store", ir.VoidType(), [self.vector, place.type, ir.IntType(32), mask.type])
            self.builder.call(function, [value, place, ir.IntType(32)(self.size), mask])
            return
        store = self.builder.store(value, place, align=VECTOR_BYTES if past else self.size)
        if past:
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.IntType(32)(1)]))

    def _masked(self, name, result, types):
        element = "f32" if self.size == 4 else "f64"
        return cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, types), f"llvm.masked.{name}.v{self.width}{element}.p0")

    def ask(self, array, index):
        """Ask for the cache line of `array[index]`, which need not exist."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        place = self.builder.bitcast(self.pointer(array, index), byte)
        self.builder.call(function, [place, number(0), number(2), number(1)])

    def spread(self, array, index):
        """A number in all lanes."""
        data = self.context.make_array(self.type[array])(self.context, self.builder, self.value[array]).data
        return self.everywhere(self.builder.load(self.builder.gep(data, [index])))

    def everywhere(self, value):
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), value, ir.IntType(32)(0))
        pick = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, one, pick)

    def fused(self, a, b, c):
        """a b + c, rounded once."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{self.width}{'f32' if self.size == 4 else 'f64'}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def minus(self, a):
        return self.builder.fneg(a)

    def groups(self, lines, body):
        """`body(x, unroll, mask)` for groups of vectors from line x on; the last one may not be whole."""
        builder = self.builder
        done, whole = cgutils.alloca_once_value(builder, self.integer(0)), builder.udiv(lines, self.integer(self.width))
        for unroll in SIDE_BY_SIDE:
            with While(builder, done, whole, unroll):
                place = builder.load(done)
                body(builder.mul(place, self.integer(self.width)), unroll, None)
                builder.store(builder.add(place, self.integer(unroll)), done)
        x = builder.mul(whole, self.integer(self.width))
        with builder.if_then(builder.icmp_unsigned("<", x, lines)):
            steps = ir.Constant(ir.VectorType(self.count, self.width), list(range(self.width)))
            left = builder.insert_element(ir.Constant(steps.type, ir.Undefined), builder.sub(lines, x),
                                          ir.IntType(32)(0))
            pick = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
            body(x, 1, builder.icmp_unsigned("<", steps, builder.shuffle_vector(left, left, pick)))


def _sweeping(names, code, doc):
    """An intrinsic with these arguments, the arrays first; `code(s)` says what an `_Sweep` emits."""
    arrays = [name for name in names if name in ("dst", "kept", "src", "a", "b", "c")]
    numbers = [name for name in names if name in ("base", "scale", "unit")]
    scope: dict[str, Any] = {}
    exec(f"def sweep(typingctx, {', '.join(names)}):\n    return make(({', '.join(names)},))", scope)

    def make(kinds):
        def codegen(context, builder, sig, args):
            code(_Sweep(context, builder, sig, args, names))
            return context.get_dummy_value()

        given = [kind if name in arrays or name in numbers else types.int64 for name, kind in zip(names, kinds)]
        return types.none(*given), codegen

    scope["make"], scope["sweep"].__doc__ = make, doc
    return intrinsic(scope["sweep"])


def _carried(s, array, at, pitch, x, unroll, mask):
    """Registers with what the row before hands on: what stands there, or zero at the `fresh` end of lines."""
    registers = [cgutils.alloca_once(s.builder, s.vector) for _ in range(unroll)]
    for register in registers:
        s.builder.store(s.zeros(), register)
    with s.builder.if_then(s.builder.icmp_signed("==", s.value["fresh"], s.integer(0))):
        place = s.builder.add(s.builder.sub(at, pitch), x)
        for k, register in enumerate(registers):
            s.builder.store(s.load(array, s.builder.add(place, s.integer(k * s.width)), mask), register)
    return registers


def _place(s, at, pitch, row, x, k):
    b = s.builder
    return b.add(b.add(s.value[at], b.mul(s.value[pitch], row)), b.add(x, s.integer(k * s.width)))


def _emit_forward(s):
    """d_i = r_i q_i - l_i d_{i-1}: what is subtracted is rounded last."""

    def body(x, unroll, mask):
        carried = _carried(s, "dst", s.value["at"], s.value["pitch"], x, unroll, mask)
        with cgutils.for_range(s.builder, s.value["rows"]) as loop:
            f = s.builder.add(s.value["f"], loop.index)
            q, l = s.spread("b", f), s.minus(s.spread("a", f))
            further = s.builder.add(loop.index, s.value["ahead"])
            for k, d in enumerate(carried):
                r = s.load("src", _place(s, "here", "src_pitch", loop.index, x, k), mask)
                s.ask("src", _place(s, "here", "src_pitch", further, x, k))
                new = s.fused(l, s.builder.load(d), s.builder.fmul(r, q))
                s.builder.store(new, d)
                s.store(new, "dst", _place(s, "at", "pitch", loop.index, x, k), mask)

    s.groups(s.value["w"], body)


def _emit_backward(s):
    """x_i = d_i - c_i x_{i+1}, c shared or of each line; rows go down: pitches are negative."""
    each = "c_pitch" in s.value

    def rows(x, carried, mask, past):
        with cgutils.for_range(s.builder, s.value["rows"]) as loop:
            shared = None if each else s.minus(s.spread("c", s.builder.sub(s.value["f"], loop.index)))
            for k, after in enumerate(carried):
                c = shared if shared is not None else s.minus(s.load("c", _place(s, "f", "c_pitch", loop.index, x, k),
                                                                     mask))
                d = s.load("src", _place(s, "here", "src_pitch", loop.index, x, k), mask)
                new = s.fused(c, s.builder.load(after), d)
                s.builder.store(new, after)
                s.store(new, "dst", _place(s, "at", "pitch", loop.index, x, k), mask, past)

    def body(x, unroll, mask):
        carried = _carried(s, "dst", s.value["at"], s.value["pitch"], x, unroll, mask)
        if mask is not None:
            rows(x, carried, mask, False)
            return
        with s.builder.if_else(s.builder.icmp_signed("!=", s.value["past"], s.integer(0))) as (then, other):
            with then:
                rows(x, carried, None, True)
            with other:
                rows(x, carried, None, False)

    s.groups(s.value["w"], body)


def _emit_forward_each(s):
    """As in this file's head, with the coefficients of each line; the matrix is base + scale times what is given."""

    def body(x, unroll, mask):
        b = s.builder
        before = _carried(s, "dst", s.value["at"], s.value["pitch"], x, unroll, mask)
        upper = _carried(s, "kept", s.value["at"], s.value["pitch"], x, unroll, mask)
        base, scale, unit = (s.everywhere(s.value[name]) for name in ("base", "scale", "unit"))
        with cgutils.for_range(b, s.value["rows"]) as loop:
            further = b.add(loop.index, s.value["ahead"])
            for k, (d, e) in enumerate(zip(before, upper)):
                place = _place(s, "f", "f_pitch", loop.index, x, k)
                low, diag, up = (s.load(name, place, mask) for name in "abc")
                r = s.load("src", _place(s, "here", "src_pitch", loop.index, x, k), mask)
                for name in "abc":
                    s.ask(name, _place(s, "f", "f_pitch", further, x, k))
                s.ask("src", _place(s, "here", "src_pitch", further, x, k))
                l = s.minus(b.fmul(scale, low))
                q = b.fdiv(unit, s.fused(l, b.load(e), s.fused(scale, diag, base)))
                new = b.fmul(s.fused(l, b.load(d), r), q)
                c = b.fmul(b.fmul(scale, up), q)
                b.store(new, d)
                b.store(c, e)
                here = _place(s, "at", "pitch", loop.index, x, k)
                s.store(new, "dst", here, mask)
                s.store(c, "kept", here, mask)

    s.groups(s.value["w"], body)


_forward = _sweeping("dst at pitch src here src_pitch a b f rows w fresh ahead".split(), _emit_forward,
                     "Forward elimination with shared factors.")
_backward = _sweeping("dst at pitch src here src_pitch c f rows w fresh past".split(), _emit_backward,
                      "Back substitution with shared factors.")
_forward_each = _sweeping("dst kept at pitch src here src_pitch a b c f f_pitch rows w fresh ahead base scale unit"
                          .split(), _emit_forward_each, "Forward elimination with the coefficients of each line.")
_backward_each = _sweeping("dst at pitch src here src_pitch c f c_pitch rows w fresh past".split(), _emit_backward,
                           "Back substitution with factors of each line.")


@kernel()
def forward(dst, at, pitch, src, here, src_pitch, a, b, f, rows, w, fresh, ahead):
    """Forward elimination with shared factors: `rows` rows of `w` lines from src[here] on to dst[at] on.

    What the row before has left in dst is gone on from, unless the lines are `fresh`. Rows `ahead` are asked for.
    """
    _forward(dst, at, pitch, src, here, src_pitch, a, b, f, rows, w, fresh, ahead)


@kernel()
def backward(dst, at, pitch, src, here, src_pitch, c, f, rows, w, fresh, past):
    """Back substitution with shared factors, from the last of the rows on; `past` the caches, to cache lines."""
    last = rows - 1
    at, here = at + pitch * last, here + src_pitch * last
    _backward(dst, at, -pitch, src, here, -src_pitch, c, f + last, rows, w, fresh, past)


@kernel()
def forward_each(dst, kept, at, pitch, src, here, src_pitch, a, b, c, f, f_pitch, rows, w, fresh, ahead, base, scale,
                 unit):
    """Forward elimination of lines with their own coefficients; `kept` takes c. `unit` is 1, typed.

    The matrix is `base` + `scale` times what is given.
    """
    _forward_each(dst, kept, at, pitch, src, here, src_pitch, a, b, c, f, f_pitch, rows, w, fresh, ahead, base, scale,
                  unit)


@kernel()
def backward_each(dst, at, pitch, src, here, src_pitch, c, f, c_pitch, rows, w, fresh, past):
    """Back substitution of lines with their own coefficients."""
    last = rows - 1
    at, here, f = at + pitch * last, here + src_pitch * last, f + c_pitch * last
    _backward_each(dst, at, -pitch, src, here, -src_pitch, c, f, -c_pitch, rows, w, fresh, past)


@inner
def put_rows(dst, s, pitch, d, d_pitch, n, w):
    """Rows out of scratch memory."""
    keep_apart()
    wide_vectors()
    s, pitch, d_pitch = np.uint64(s), np.uint64(pitch), np.uint64(d_pitch)
    for i in range(np.uint64(n)):
        for x in range(np.uint64(w)):
            dst[s + i * pitch + x] = d[i * d_pitch + x]


@inner
def close_lines(d, e, z, v, u, s, pitch, g, shared, n, w, d_pitch):
    """What the corners of cyclic lines add: x = y - z (y_0 + v y_{n-1}) u."""
    keep_apart()
    wide_vectors()
    n, w, s, pitch, g, zero = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch), np.uint64(g), np.uint64(0)
    d_pitch = np.uint64(d_pitch)
    last = (n - np.uint64(1)) * d_pitch
    for x in range(w):
        e[x] = (d[x] + v[g if shared else g + x] * d[last + x]) * u[g if shared else g + x]
    for i in range(n):
        for x in range(w):
            d[i * d_pitch + x] -= e[x] * z[s + i * pitch + (zero if shared else x)]


class Lines(NamedTuple):
    """What is the same for all blocks of lines."""

    n: Any
    pitch: Any  # from row to row of a block, or from line to line if they are contiguous
    lines: Any  # from row to row of coefficients that are not shared
    across: Any
    shared: Any
    cyclic: Any
    base: Any
    scale: Any
    unit: Any
    past: Any  # results go past the caches
    ahead: Any  # rows that are asked for ahead of time


@inner
def solve_block(f, src, dst, buf, t, s, here, g, w, pitch, past):
    """One block of `w` lines, from `s` on; coefficients are at `here`, those of its corners at `g`.

    In `buf` a row takes `pitch` numbers: first those that become the results, then c of lines with their own
    coefficients, then a strip of right-hand sides.
    """
    keep_apart()
    n, none, one = t.n, s - s, s - s + 1
    d, e, strip = buf[: n * pitch], buf[n * pitch : 2 * n * pitch], buf[2 * n * pitch :]
    if t.across:
        for i in range(none, n, np.int64(STRIP)):
            rows = min(n - i, np.int64(STRIP))
            transposed(strip, none, pitch, src, s + i, t.pitch, rows, w)
            if t.shared:
                forward(d, i * pitch, pitch, strip, none, pitch, f.a, f.b, here + i, rows, w, i == 0, none)
            else:
                forward_each(d, e, i * pitch, pitch, strip, none, pitch, f.a, f.b, f.c, here + i * t.lines, t.lines,
                             rows, w, i == 0, t.ahead, t.base, t.scale, t.unit)
    elif t.shared:
        forward(d, none, pitch, src, s, t.pitch, f.a, f.b, here, n, w, one, t.ahead)
    else:
        forward_each(d, e, none, pitch, src, s, t.pitch, f.a, f.b, f.c, here, t.lines, n, w, one, t.ahead, t.base,
                     t.scale, t.unit)
    if t.across or t.cyclic:
        for k in range(none, n, np.int64(STRIP)):
            rows = min(n - k, np.int64(STRIP))
            i = n - k - rows
            if t.shared:
                backward(d, i * pitch, pitch, d, i * pitch, pitch, f.c, here + i, rows, w, k == 0, none)
            else:
                backward_each(d, i * pitch, pitch, d, i * pitch, pitch, e, i * pitch, pitch, rows, w, k == 0, none)
            if t.cyclic == 0:
                transposed(dst, s + i, t.pitch, d, i * pitch, pitch, w, rows)
    elif t.shared:
        backward(dst, s, t.pitch, d, none, pitch, f.c, here, n, w, one, past)
    else:
        backward_each(dst, s, t.pitch, d, none, pitch, e, none, pitch, n, w, one, past)
    if t.cyclic:
        close_lines(d, e, f.z, f.v, f.w, here, one if t.shared else t.lines, g, t.shared, n, w, pitch)
        if t.across:
            transposed(dst, s, t.pitch, d, none, pitch, w, n)
        else:
            put_rows(dst, s, t.pitch, d, pitch, n, w)


@kernel()
def run(factors, source, target, memory, counter, t, outer, inner, group, width, shift):
    """Worker: take blocks of lines until none is left. `group`: outer indices that share coefficients.

    The first block along an axis is narrower by `shift` lines, with which the others start at cache lines.
    """
    f, src, dst, buf, progress = borrow(factors), borrow(source), borrow(target), borrow(memory), borrow(counter)
    lines = group if t.across else inner  # among which a block is taken
    per, n = (lines + shift + width - 1) // width, t.n
    blocks = per * (outer // group if t.across else outer)
    state = flush_denormals()
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= blocks:
            break
        o, x0 = turn // per, turn % per * width - shift
        w = min(x0 + width, lines) - max(x0, x0 - x0)
        x0 = max(x0, x0 - x0)
        g = o if t.across else o // group  # of the coefficients
        s = (o * group + x0) * n if t.across else o * n * inner + x0
        here = g * n if t.shared else g * n * lines + x0
        past = t.past if x0 > 0 or shift == 0 else t.past - t.past
        solve_block(f, src, dst, buf, t, s, here, g if t.shared else g * lines + x0, w, width, past)
    if t.past:
        finish_stream()
    restore_denormals(state)


@kernel()
def add_scaled(target, source, scale, first, last):
    """target += scale * source, from one place to another."""
    u, x = borrow(target), borrow(source)
    wide_vectors()
    for i in range(np.uint64(first), np.uint64(last)):
        u[i] += scale * x[i]


# -- the host --------------------------------------------------------------------------------------------------------


class Systems:
    """Tridiagonal systems along one axis of arrays of one shape and dtype, made ready once and solved many times.

    lower, diag, upper  (n,), or (groups, n) with groups dividing the product of the axes before, or of the arrays'
                        shape. lower[0] and upper[-1] are ignored, or couple the ends if `cyclic`
    """

    def __init__(self, lower, diag, upper, shape, axis, dtype, *, cyclic=False, threads=None):
        self.shape, self.axis, self.dtype = tuple(shape), axis % len(shape), np.dtype(dtype)
        self.threads = default_threads() if threads is None else threads
        self.outer, self.n = int(np.prod(self.shape[: self.axis])), self.shape[self.axis]
        self.inner = int(np.prod(self.shape[self.axis + 1 :]))
        bands = [np.asarray(t, np.float64) for t in (lower, diag, upper)]
        self.shared = all(t.ndim < 3 and t.shape[-1] == self.n and t.shape != self.shape for t in bands)
        self.cyclic = cyclic and self.n > 2
        bands = [self._laid_out(t) for t in bands]
        self.group = self.outer // len(bands[0]) if self.shared or self.inner > 1 else self.outer
        self.factors = self._factored(*self._folded(*bands, cyclic))

    def _laid_out(self, band):
        """(groups, n), or (outer, n, inner); lines along the contiguous axis as (1, n, outer)."""
        if self.shared:
            band = np.atleast_2d(band)
            if band.shape[-1] != self.n or self.outer % len(band):
                raise ValueError(f"coefficients {band.shape} do not fit lines of {self.n} in {self.outer} rows")
            return band
        band = np.broadcast_to(band, self.shape).reshape(self.outer, self.n, self.inner)
        return band.transpose(2, 1, 0) if self.inner == 1 else band

    def _folded(self, lower, diag, upper, cyclic):
        """The bands without corners, and the weights v of y_{n-1} for cyclic lines."""
        groups = max(b.shape[0] for b in (lower, diag, upper))
        lower, diag, upper = (_copied(np.broadcast_to(b, (groups, *b.shape[1:]))) for b in (lower, diag, upper))
        v = np.zeros_like(diag[:, 0])
        if cyclic and self.n == 1:
            diag = diag + lower + upper
        elif cyclic and self.n == 2:  # both neighbours are the same cell
            lower[:, 1] += upper[:, 1]
            upper[:, 0] += lower[:, 0]
        elif cyclic:
            v = -lower[:, 0] / diag[:, 0]
            diag[:, -1] -= v * upper[:, -1]
            self._corner = -diag[:, 0].copy(), upper[:, -1].copy()
            diag[:, 0] *= 2
        lower[:, 0], upper[:, -1] = 0.0, 0.0
        return lower, diag, upper, v

    def _factored(self, lower, diag, upper, v):
        if not (self.shared or self.cyclic):
            return self._flat(lower, diag, upper, v[:1], v, v)
        c, q = np.empty_like(diag), np.empty_like(diag)
        q[:, 0] = 1 / diag[:, 0]
        c[:, 0] = upper[:, 0] * q[:, 0]
        for i in range(1, self.n):
            q[:, i] = 1 / (diag[:, i] - lower[:, i] * c[:, i - 1])
            c[:, i] = upper[:, i] * q[:, i]
        if not (np.isfinite(q).all()):
            raise ValueError("a system is singular, or needs pivoting, which is not done here")
        z, w = np.zeros((len(diag), 1)), np.zeros_like(v)
        if self.cyclic:
            z = np.zeros_like(diag)
            z[:, 0], z[:, -1] = self._corner
            z = _thomas(lower * q, q, c, z)
            w = 1 / (1 + z[:, 0] + v * z[:, -1])
        parts = (lower * q, q, c, z, v, w) if self.shared else (lower, diag, upper, z, v, w)
        return self._flat(*parts)

    def _flat(self, *parts):
        return Factors(*(np.ascontiguousarray(part, self.dtype).reshape(-1) for part in parts))

    def solve(self, r, out=None, scale=None):
        """x for the right-hand sides `r`; `out` may be `r`.

        scale  the matrix is 1 + `scale` times the given one: for lines with their own coefficients that are not cyclic,
               of which nothing is computed beforehand
        """
        if scale is not None and (self.shared or self.cyclic):
            raise ValueError("lines that are shared or cyclic are factored: make new systems for another scale")
        if r.shape != self.shape or r.dtype != self.dtype or not r.flags.c_contiguous:
            raise ValueError(f"expected a C-contiguous array of shape {self.shape} and dtype {self.dtype}")
        out = empty_like(r) if out is None else out
        lines = self.group if self.inner == 1 else self.inner
        row = self.n * self.dtype.itemsize * (1 if self.shared else 2)
        width = min(MOST, max(LEAST, BLOCK_BYTES // row // LEAST * LEAST), max(LEAST, -(-lines // LEAST) * LEAST))
        blocks = -(-lines // width) * (self.outer // self.group if self.inner == 1 else self.outer)
        if blocks < self.threads and lines > LEAST:  # enough blocks for every thread
            width = max(LEAST, -(-lines * blocks // self.threads // LEAST // max(blocks, 1)) * LEAST)
        progress, number = np.zeros(1, np.int64), self.dtype.type
        numbers = number(scale is not None), number(1 if scale is None else scale), number(1)
        across = self.inner == 1
        past = out is not r and r.nbytes > PAST and self.inner * self.dtype.itemsize % VECTOR_BYTES == 0
        shift = out.ctypes.data % VECTOR_BYTES // self.dtype.itemsize if past else 0
        t = Lines(self.n, self.n if across else self.inner, lines, int(across), int(self.shared), int(self.cyclic),
                  *numbers, int(past), AHEAD if r.nbytes > NEAR else 0)

        def task():
            memory = scratch((2 * self.n + STRIP) * width, self.dtype)
            run(self.factors, r.reshape(-1), out.reshape(-1), memory, progress, t, self.outer, self.inner, self.group,
                width, shift)

        together(task, min(self.threads, max(blocks, -(-lines // width))))
        return out


def accumulate(u, x, scale, threads=None):
    """u += scale * x for contiguous arrays, on all threads."""
    count = max(1, min(default_threads() if threads is None else threads, u.size >> 15))
    parts, scale = [(k * u.size // count, (k + 1) * u.size // count) for k in range(count)], u.dtype.type(scale)

    def task():
        while True:
            try:
                first, last = parts.pop()
            except IndexError:
                return
            add_scaled(u.reshape(-1), x.reshape(-1), scale, first, last)

    together(task, count)


def _copied(band):
    """A C-contiguous copy. Of a transposed plane by strips of a cache line, which takes a quarter of NumPy's time."""
    copy = empty(band.shape, band.dtype)
    if band.ndim < 3 or band.strides[-1] <= band.strides[-2]:
        copy[...] = band
        return copy
    for k in range(0, band.shape[-1], 8):
        copy[..., k : k + 8] = band[..., k : k + 8]
    return copy


def _thomas(a, q, c, r):
    """Factored systems in NumPy: (groups, n) or (groups, n, lines)."""
    d = r * q
    for i in range(1, d.shape[1]):
        d[:, i] -= a[:, i] * d[:, i - 1]
    for i in range(d.shape[1] - 2, -1, -1):
        d[:, i] -= c[:, i] * d[:, i + 1]
    return d


def cpu(lower, diag, upper, u, axis, cyclic, out=None, threads=None):
    """Solve along `axis` on the CPU."""
    return Systems(lower, diag, upper, u.shape, axis, u.dtype, cyclic=cyclic, threads=threads).solve(u, out)


def cuda(lower, diag, upper, u, axis, cyclic, out=None, stream=None):
    """Solve along `axis` on the GPU."""
    from fastdiff.kernels._tridiagonal_cuda import SystemsCuda

    return SystemsCuda(lower, diag, upper, u.shape, axis, u.dtype, cyclic=cyclic).solve(u, out, stream=stream)


def _ptx(each, cyclic):
    def launches(dtype):
        from fastdiff.kernels._tridiagonal_cuda import launches

        return list(launches(dtype, each, cyclic))

    return launches


def _sample(axis, each, cyclic):
    def sample(shape, dtype, rng):
        form = shape if each else (shape[axis],)
        lower, upper = -rng.random(form), -rng.random(form)
        return dict(lower=lower, diag=1.2 - lower - upper, upper=upper, u=rng.random(shape).astype(dtype), axis=axis,
                    cyclic=cyclic)

    return sample


def _machine_code(dtype):
    from numba import types

    kind = types.float32 if np.dtype(dtype) == np.float32 else types.float64
    row, i = types.Array(kind, 1, "C"), types.int64
    return [(forward, (row, i, i, row, i, i, row, row, i, i, i, i, i)),
            (backward, (row, i, i, row, i, i, row, i, i, i, i, i)),
            (forward_each, (row, row, i, i, row, i, i, row, row, row, i, i, i, i, i, i, kind, kind, kind)),
            (backward_each, (row, i, i, row, i, i, row, i, i, i, i, i, i)), (add_scaled, (row, row, kind, i, i))]


_SHAPES = {(1, 1, 1): "one equation", (1, 2, 3): "two equations", (2, 3, 1): "contiguous lines of three",
           (3, 7, 5): "nothing is a whole vector", (2, 33, 70): "more lines than a narrow block, odd lengths",
           (70, 6, 1): "many contiguous lines"}


def _kernel(name, each, cyclic):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(1, each, cyclic),
                  shapes=_SHAPES, large=(1, 1024, 4096), machine_code=_machine_code, ptx=_ptx(each, cyclic),
                  bytes_per_cell=5 if each else 2, flops_per_cell=8 if each else 5, tolerance=8)


KERNELS = [
    _kernel("tridiagonal", False, False),
    _kernel("tridiagonal_cyclic", False, True),
    _kernel("tridiagonal_each", True, False),
    _kernel("tridiagonal_each_cyclic", True, True),
]
