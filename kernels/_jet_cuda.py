"""Jets of a network and their adjoint on the GPU: a block of threads for each tile of 32 points.

The passes are those of `jet.py`. A thread owns one point and eight rows of a product at a time, with all channels in
registers; weights and inputs come through shared memory in pieces of 16. What a tile needs lies in global memory that
is the block's own, and stays in the second-level cache. Blocks sum their own gradients, which are then added in order:
the same bits for a given number of blocks.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache

import numpy as np

from fastdiff.kernels import _cuda, _math
from fastdiff.kernels.jet import ACTIVATIONS, count, seconds_of

cuda = _cuda.toolkit()

POINTS = 32
GROUPS = 2  # of threads: each has rows of its own
ROWS = 8  # of a thread
PIECE = 16  # of the depth of a product
PACK = GROUPS * ROWS
THREADS = POINTS * GROUPS
# entries of `sizes`, before the widths
N, D, FIRSTS, LINEARS, ACTIVATION, LAST, JETS, TERMS, PARAMETERS, PER_BLOCK, WIDEST, MODE, WANT_X, HEAD = range(14)


@lru_cache(maxsize=16)
def _product(C: int, F):
    """The device function of a product of a matrix with a tile of all channels."""
    kind, zero = F, F(0)

    @cuda.jit(device=True)
    def product(a, at, row_step, depth_step, s, source, depth, rows, to, bias, bias_at, use):
        """s[to] = a s[source] (+ bias in the value channel)."""
        weights = cuda.shared.array((PIECE, PACK), kind)
        piece = cuda.shared.array((PIECE, C, POINTS), kind)
        sums = cuda.local.array((ROWS, C), kind)
        me = cuda.threadIdx.x
        p, first = me % POINTS, (me // POINTS) * ROWS
        for r0 in range(0, rows, PACK):
            for j in range(ROWS):
                for c in range(C):
                    sums[j, c] = zero
                if use and r0 + first + j < rows:
                    sums[j, 0] = bias[bias_at + r0 + first + j]
            for k0 in range(0, depth, PIECE):
                cuda.syncthreads()
                for e in range(me, PIECE * PACK, THREADS):
                    k, r = e // PACK, e % PACK
                    inside = r0 + r < rows and k0 + k < depth
                    weights[k, r] = a[at + (r0 + r) * row_step + (k0 + k) * depth_step] if inside else zero
                for e in range(me, PIECE * C * POINTS, THREADS):
                    k, c, q = e // (C * POINTS), (e // POINTS) % C, e % POINTS
                    piece[k, c, q] = s[source + (c * depth + k0 + k) * POINTS + q] if k0 + k < depth else zero
                cuda.syncthreads()
                for k in range(PIECE):
                    for j in range(ROWS):
                        w = weights[k, first + j]
                        for c in range(C):
                            sums[j, c] += w * piece[k, c, p]
            for j in range(ROWS):
                if r0 + first + j < rows:
                    for c in range(C):
                        s[to + (c * rows + r0 + first + j) * POINTS + p] = sums[j, c]
        cuda.syncthreads()

    return product


@lru_cache(maxsize=2)
def _slopes(F):
    """The device function of the activations."""
    one, two, three, four, six, half = map(F, (1, 2, 3, 4, 6, 0.5))
    root, norm = F(1 / np.sqrt(2)), F(1 / np.sqrt(2 * np.pi))

    @cuda.jit(device=True)
    def slopes(activation, z):
        """The activation and its first three derivatives."""
        if activation == 0:
            h = _math.tanh(z)
            d = (one - h) * (one + h)
            return h, d, -two * h * d, d * (six * h * h - two)
        if activation == 1:
            h, d = _math.sin(z), _math.cos(z)
            return h, d, -h, -d
        if activation == 2:
            g = _math.sigmoid(z)
            g1 = g * (one - g)
            g2 = g1 * (one - two * g)
            g3 = g2 * (one - two * g) - two * g1 * g1
            return z * g, g + z * g1, two * g1 + z * g2, three * g2 + z * g3
        cdf, pdf = half + half * _math.erf(z * root), norm * _math.exp(-half * z * z)
        return z * cdf, cdf + z * pdf, pdf * (two - z * z), pdf * z * (z * z - four)

    return slopes


@lru_cache(maxsize=16)
def _activations(C: int, F):
    """The device functions `activate` and `deactivate`: all channels through an activation, and back."""
    zero, slopes = F(0), _slopes(F)

    @cuda.jit(device=True)
    def quadratic(second, terms, factors, count, s, z, step):
        total = zero
        for k in range(count):
            if terms[3 * k] == second:
                total += factors[k] * s[z + (1 + terms[3 * k + 1]) * step] * s[z + (1 + terms[3 * k + 2]) * step]
        return total

    @cuda.jit(device=True)
    def activate(sizes, terms, factors, s, rows, keep, to):
        step, firsts = rows * POINTS, sizes[FIRSTS]
        for e in range(cuda.threadIdx.x, step, THREADS):
            z, h = keep + e, to + e
            value, d1, d2, _ = slopes(sizes[ACTIVATION], s[z])
            s[h] = value
            for c in range(1, C):
                new = d1 * s[z + c * step]
                if c > firsts:
                    new += d2 * quadratic(c - 1 - firsts, terms, factors, sizes[TERMS], s, z, step)
                s[h + c * step] = new
        cuda.syncthreads()

    @cuda.jit(device=True)
    def deactivate(sizes, terms, factors, s, rows, keep, bar):
        """z- in place of h-, and h in place of z."""
        step, firsts = rows * POINTS, sizes[FIRSTS]
        for e in range(cuda.threadIdx.x, step, THREADS):
            z, b = keep + e, bar + e
            value, d1, d2, d3 = slopes(sizes[ACTIVATION], s[z])
            total = d1 * s[b]
            for c in range(1, 1 + firsts):
                total += d2 * s[z + c * step] * s[b + c * step]
                s[b + c * step] *= d1
            for c in range(1 + firsts, C):
                q = quadratic(c - 1 - firsts, terms, factors, sizes[TERMS], s, z, step)
                hs, zs = s[b + c * step], s[z + c * step]
                total += (d2 * zs + d3 * q) * hs
                s[b + c * step] = d1 * hs
                s[z + c * step] = d1 * zs + d2 * q
                for k in range(sizes[TERMS]):
                    if terms[3 * k] == c - 1 - firsts:
                        i, j, f = (1 + terms[3 * k + 1]) * step, (1 + terms[3 * k + 2]) * step, factors[k] * d2 * hs
                        s[b + i] += f * s[z + j]
                        s[b + j] += f * s[z + i]
            for c in range(1, 1 + firsts):
                s[z + c * step] *= d1
            s[z], s[b] = value, total
        cuda.syncthreads()

    return activate, deactivate


@lru_cache(maxsize=16)
def _moves(C: int, F):
    """The device functions `fetch` and `move`: what comes into a tile and goes out of it."""
    zero = F(0)

    @cuda.jit(device=True)
    def fetch(sizes, x, seeds, s, begin, at):
        d, n = sizes[D], sizes[N]
        for e in range(cuda.threadIdx.x, C * d * POINTS, THREADS):
            c, k, q = e // (d * POINTS), (e // POINTS) % d, e % POINTS
            point = min(begin + q, n - 1)
            if sizes[JETS]:
                value = x[(c * n + point) * d + k]
            elif c == 0:
                value = x[point * d + k]
            elif c <= sizes[FIRSTS]:
                value = seeds[(c - 1) * d + k]
            else:
                value = zero
            s[at + e] = value
        cuda.syncthreads()

    @cuda.jit(device=True)
    def move(sizes, s, outer, at, rows, begin, inwards):
        n = sizes[N]
        for e in range(cuda.threadIdx.x, C * rows * POINTS, THREADS):
            c, r, q = e // (rows * POINTS), (e // POINTS) % rows, e % POINTS
            far = (c * n + begin + q) * rows + r
            if begin + q < n:
                if inwards:
                    s[at + e] = outer[far]
                else:
                    outer[far] = s[at + e]
            elif inwards:
                s[at + e] = zero
        cuda.syncthreads()

    return fetch, move


@lru_cache(maxsize=16)
def _gradients(C: int, F):
    """The device functions of a layer's gradient: a block's sum, or one of each point."""
    zero = F(0)

    @cuda.jit(device=True)
    def add_sum(sizes, s, bar, rows, h, columns, gradient, at, begin):
        at += cuda.blockIdx.x * sizes[PARAMETERS]
        for e in range(cuda.threadIdx.x, rows * (columns + 1), THREADS):
            o, i = e // (columns + 1), e % (columns + 1)
            total = zero
            for c in range(C if i < columns else 1):
                for q in range(POINTS):
                    b = s[bar + (c * rows + o) * POINTS + q]
                    total += b * s[h + (c * columns + i) * POINTS + q] if i < columns else b
            gradient[at + (o * columns + i if i < columns else rows * columns + o)] += total
        cuda.syncthreads()

    @cuda.jit(device=True)
    def add_each(sizes, s, bar, rows, h, columns, gradient, at, begin):
        n = sizes[N]
        for e in range(cuda.threadIdx.x, rows * (columns + 1) * POINTS, THREADS):
            q, o, i = e % POINTS, e // POINTS // (columns + 1), e // POINTS % (columns + 1)
            total = zero
            for c in range(C if i < columns else 1):
                b = s[bar + (c * rows + o) * POINTS + q]
                total += b * s[h + (c * columns + i) * POINTS + q] if i < columns else b
            if begin + q < n:
                gradient[(at + (o * columns + i if i < columns else rows * columns + o)) * n + begin + q] = total
        cuda.syncthreads()

    return add_sum, add_each


@lru_cache(maxsize=16)
def network_kernel(C: int, dtype: str, each=False):
    """The kernel for C channels: forwards (mode 0), or forwards and backwards (1).

    `each`: its gradients are those of every point, (parameters, N), not sums over the points of a block.
    """
    F = np.dtype(dtype).type
    product, (activate, deactivate), (fetch, move) = _product(C, F), _activations(C, F), _moves(C, F)
    add = _gradients(C, F)[int(each)]

    def network(sizes, x, theta, seeds, terms, factors, cot, out, gradient, xbar, s):
        d, linears, block = sizes[D], sizes[LINEARS], cuda.blockIdx.x
        inputs = block * sizes[PER_BLOCK]
        ping = inputs + C * d * POINTS
        pong = ping + C * sizes[WIDEST] * POINTS
        first = pong + C * sizes[WIDEST] * POINTS
        for tile in range(block, (sizes[N] + POINTS - 1) // POINTS, cuda.gridDim.x):
            begin = tile * POINTS
            fetch(sizes, x, seeds, s, begin, inputs)
            source, depth, keep, at = inputs, d, first, 0
            for l in range(linears):
                rows = sizes[HEAD + l + 1]
                product(theta, at, depth, 1, s, source, depth, rows, keep, theta, at + rows * depth, True)
                source = keep
                if l + 1 < linears or sizes[LAST]:
                    activate(sizes, terms, factors, s, rows, keep, ping)
                    source = ping
                keep += C * rows * POINTS
                at += rows * (depth + 1)
                depth = rows
            if sizes[MODE] == 0:
                move(sizes, s, out, source, depth, begin, False)
                continue
            bar, other = pong, ping
            move(sizes, s, cot, bar, depth, begin, True)
            if sizes[LAST]:
                deactivate(sizes, terms, factors, s, depth, keep - C * depth * POINTS, bar)
            for back in range(linears):
                l = linears - 1 - back
                rows, columns = sizes[HEAD + l + 1], sizes[HEAD + l]
                keep -= C * rows * POINTS
                at -= rows * (columns + 1)
                h = inputs if l == 0 else keep - C * columns * POINTS
                if l > 0 or sizes[WANT_X]:
                    product(theta, at, 1, columns, s, bar, rows, columns, other, theta, 0, False)
                if l > 0:
                    deactivate(sizes, terms, factors, s, columns, h, other)
                add(sizes, s, bar, rows, h, columns, gradient, at, begin)
                bar, other = other, bar
            if sizes[WANT_X]:
                if sizes[JETS]:
                    move(sizes, s, xbar, bar, d, begin, False)
                else:
                    for e in range(cuda.threadIdx.x, d * POINTS, THREADS):
                        if begin + e % POINTS < sizes[N]:
                            xbar[(begin + e % POINTS) * d + e // POINTS] = s[bar + e]
                    cuda.syncthreads()

    return cuda.jit(network) if _cuda.simulated() else cuda.jit(launch_bounds=(THREADS, 4))(network)


@lru_cache(maxsize=1)
def sum_kernel():
    """Adds the gradients of the blocks, in order."""

    @cuda.jit
    def add(gradient, blocks, parameters, out):
        n = cuda.grid(1)
        if n < parameters:
            total = gradient[n]
            for k in range(1, blocks):
                total += gradient[k * parameters + n]
            out[n] = total

    return add


def _sizes(x, widths, seeds, terms, activation, last, mode, want_x):
    C = 1 + len(seeds) + seconds_of(terms)
    per = C * POINTS * (widths[0] + 2 * max(widths) + sum(widths[1:]))
    head = [tuple(x.shape)[-2], widths[0], len(seeds), len(widths) - 1, ACTIVATIONS.index(activation), int(last),
            int(len(x.shape) == 3), len(terms), count(widths), per, max(widths), mode, int(want_x)]
    return C, np.array([*head, *widths], np.int64)


def _run(x, theta, widths, seeds, terms, activation, last, mode, cot, out, gradient_out, xbar, want_x, stream,
         each=False):
    """Launch on device arrays."""
    dtype = np.dtype(str(x.dtype).removeprefix("torch."))
    C, sizes = _sizes(x, widths, seeds, terms, activation, last, mode, want_x)
    blocks = min(-(-int(sizes[N]) // POINTS), 4 * _cuda.multiprocessors())
    queue = _cuda.numba_stream(stream)
    dev = lambda v: cuda.to_device(np.ascontiguousarray(v), stream=queue)
    flat = lambda v: _cuda.wrap(v.reshape(-1))
    nothing = dev(np.zeros(1, dtype))
    gradient = flat(gradient_out) if each else dev(np.zeros(blocks * int(sizes[PARAMETERS]) if mode else 1, dtype))
    space = cuda.device_array(blocks * int(sizes[PER_BLOCK]), dtype)
    table = dev(np.array([t[:3] for t in terms] or [(0, 0, 0)], np.int64).reshape(-1))
    factors = dev(np.array([t[3] for t in terms] or [0.0], dtype))
    directions = dev(np.asarray(seeds, dtype).reshape(-1) if len(seeds) else np.zeros(1, dtype))
    network_kernel(C, dtype.name, each)[blocks, THREADS, queue](
        dev(sizes), flat(x), flat(theta), directions, table, factors, nothing if cot is None else flat(cot),
        nothing if out is None else flat(out), gradient, nothing if xbar is None else flat(xbar), space)
    if mode and not each:
        parameters = int(sizes[PARAMETERS])
        sum_kernel()[-(-parameters // 64), 64, queue](gradient, blocks, parameters, flat(gradient_out))


def _on_device(*arrays):
    return [a if a is None or _cuda.on_device(a) else cuda.to_device(np.ascontiguousarray(a)) for a in arrays]


def forward(x, theta, widths, seeds, terms=(), activation="tanh", last=False, out=None, stream=None):
    """Channels (C, N, out), as `jet.forward`; device arrays or torch tensors stay where they are."""
    _cuda.require_device()
    shape = (1 + len(seeds) + seconds_of(terms), x.shape[-2], widths[-1])
    if not _cuda.on_device(x):
        host = np.empty(shape, x.dtype) if out is None else out
        dx, dtheta, dout = _on_device(x, theta, np.empty(shape, x.dtype))
        _run(dx, dtheta, widths, seeds, terms, activation, last, 0, None, dout, None, None, False, stream)
        host[...] = dout.copy_to_host()
        return host
    out = x.new_empty(shape) if out is None else out
    _run(x, theta, widths, seeds, terms, activation, last, 0, None, out, None, None, False, stream)
    return out


def adjoint(x, theta, widths, seeds, cot, terms=(), activation="tanh", last=False, want_x=True, out=None, stream=None):
    """Gradients by the parameters and by x, as `jet.adjoint`."""
    _cuda.require_device()
    if not _cuda.on_device(x):
        dx, dtheta, dcot, grad, xbar = _on_device(x, theta, cot, np.empty_like(theta), np.empty_like(x))
        _run(dx, dtheta, widths, seeds, terms, activation, last, 1, dcot, None, grad, xbar, want_x, stream)
        found = grad.copy_to_host(), xbar.copy_to_host() if want_x else None
        if out is None:
            return found
        for place, value in zip(out, found):
            place[...] = value
        return out
    grad, xbar = theta.new_empty(theta.shape), x.new_empty(x.shape) if want_x else None
    _run(x, theta, widths, seeds, terms, activation, last, 1, cot, None, grad, xbar, want_x, stream)
    return grad, xbar


def jacobian(x, theta, widths, seeds, cot, terms=(), activation="tanh", out=None, stream=None):
    """The gradient of each point's sum of cot * forward(...) by the parameters, (parameters, N), as `jet.jacobian`."""
    _cuda.require_device()
    shape = count(widths), x.shape[-2]
    if not _cuda.on_device(x):
        dx, dtheta, dcot, made = _on_device(x, theta, cot, np.empty(shape, x.dtype))
        _run(dx, dtheta, widths, seeds, terms, activation, False, 1, dcot, None, made, None, False, stream, True)
        host = np.empty(shape, x.dtype) if out is None else out
        host[...] = made.copy_to_host()
        return host
    out = x.new_empty(shape) if out is None else out
    _run(x, theta, widths, seeds, terms, activation, False, 1, cot, None, out, None, False, stream, True)
    return out


def launches(dtype, channels, each=False):
    """What the PTX gate compiles: the network for some numbers of channels, and the sum of the blocks' gradients."""
    from fastdiff.kernels._contract import Launch

    array, ints = np.zeros(1, dtype), np.zeros(1, np.int64)
    arguments = (ints, array, array, array, ints, array, array, array, array, array, array)
    return [Launch(f"network, {C} channels", network_kernel(C, np.dtype(dtype).name, each), arguments, (THREADS, 1))
            for C in channels] + [Launch("sum", sum_kernel(), (array, 1, 1, array), (64, 1))]
