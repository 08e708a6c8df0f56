"""Random walks in a box: Brownian motion with drift between walls that reflect, absorb, or feed and drain.

    dX = drift + spread dW for each step and axis, X in [low, high] on axes with walls

The walk is sampled exactly, not in small steps: beside one wall the position after a step, the hour of the first
contact and how hard the wall pushed are drawn from their joint law. A step may be as long as the other wall allows:
spread <= (high - low)/8 makes a path that feels both in one step as rare as 1e-13, and axes without walls have no
limit.

Beside a wall at distance a (before the step) and b (after it, were there no wall), with U uniform,

    least distance on the way    m = (a + b - sqrt((b - a)² - 2 spread² ln U)) / 2
    reflecting wall              push L = max(0, -m), the walk ends at b + L (Skorokhod; exact with drift)
    absorbing wall               it was met if m < 0; when: z/(1 + z) of the step, z inverse Gaussian with mean a/|b|
                                 and shape (a/spread)², drawn after Michael, Schucany and Haas

A wall also has a decay k and a gain q. Along the walk, with the push dL of the walls,

    weight = exp(-integral of k dL),      gain = integral of weight q dL

which is what the Feynman-Kac formula wants of Neumann and Robin walls (k and q of an absorbing wall are not looked at).
A walker that is absorbed stops there and then: its other axes are drawn anew for that part of the step, from the
bridge between its ends, with the push of reflecting walls. That is exact too, but for one thing: beside a corner of
two absorbing walls the place on the first says nothing of the second.

Random numbers: Philox with key = seed and counter = (walker, walker's high word, step, kind of draw): no two draws
share one, and nothing depends on how walkers are shared out to threads.

Shapes: x (N, ndim), spread (ndim,), drift (1 or N, ndim), walls (ndim, 2, 3) = position, k, q of both ends, kinds
(ndim, 2) = FREE, REFLECT or ABSORB. Result: positions (N, ndim) and fate (N, 4) = weight, gain, where the walker was
absorbed (-1, or 2 axis + end), and after how many steps. Units: any length; time in steps.

Sources: Asmussen, Glynn, Pitman, "Discretization error in simulation of
one-dimensional reflecting Brownian motion", Ann. Appl. Probab. 5 (1995) 875, section 2 (the joint law of end and
minimum); Michael, Schucany, Haas, "Generating random variates using transformations with multiple roots", Am. Stat.
30 (1976) 88; Feynman-Kac with local time: Milstein and Tretyakov, Stochastic Numerics for Mathematical Physics, 2004,
chapter 6.
"""

import math
from itertools import count

import numpy as np
from numba import njit

from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._jit import FASTMATH, FLAGS, kernel, wide_vectors
from fastdiff.kernels._math import exp
from fastdiff.kernels._part import AS_PART
from fastdiff.kernels._philox import everywhere, minus_two_log, normal_pair, philox, split, uniform
from fastdiff.kernels._threads import default_threads, together

FREE, REFLECT, ABSORB = 0, 1, 2
LANES = 64  # walkers that walk side by side
SHARE = 16  # blocks of them that a thread takes at once

MOVE, MEET, HOUR, CHOICE, PLACE, AGAIN = range(6)  # kinds of draw: normals, uniforms, and four only for contacts


# -- the reference -----------------------------------------------------------------------------------------------------


def _uniforms(walkers, step, kind, seed, dtype):
    """The four uniform numbers of each walker (4, N), rounded as a kernel's, and the words."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    same = np.ones_like(walkers)
    words = np.stack(philox(walkers & low, walkers >> high, same * np.uint64(step), same * np.uint64(kind),
                            *split(seed)))
    return (words.astype(dtype) * dtype.type(2.0**-32) + dtype.type(2.0**-33)).astype(np.float64), words


def _normals(walkers, step, kind, seed, dtype):
    """The four normal numbers of each walker (4, N)."""
    shares, words = _uniforms(walkers, step, kind, seed, dtype)
    r, turns = np.sqrt(-2 * np.log(shares[::2])), words[1::2]
    part = (turns << np.uint64(2)).astype(np.uint32).view(np.int32) * 2.0**-32
    angle = np.pi / 2 * ((turns >> np.uint64(30)) + part)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1).reshape(4, -1)


def reference(x, spread, drift, walls, kinds, steps, seed, first=0, step=0, out=None):
    """The walk in plain NumPy, float64."""
    dtype, y = x.dtype, x.astype(np.float64).T.copy()
    spread, walls = spread.astype(np.float64), walls.astype(np.float64)
    shift = np.broadcast_to(drift.astype(np.float64), x.shape).T
    walkers = np.arange(first, first + len(x), dtype=np.uint64)
    fate = np.stack([np.ones(len(x)), np.zeros(len(x)), np.full(len(x), -1.0), np.full(len(x), float(steps))])
    for s in range(steps):
        live = fate[2] < 0

        def shares(kind, s=s):
            return _uniforms(walkers, step + s, kind, seed, dtype)[0]

        def numbers(kind, s=s):
            return _normals(walkers, step + s, kind, seed, dtype)

        free = y + shift + spread[:, None] * numbers(MOVE)[: len(y)]  # where it would end without walls
        ends, pushes, contacts = free.copy(), np.zeros_like(y), []
        meet = shares(MEET)
        for a in (a for a in range(len(y)) if kinds[a].any()):
            side, near, past, push, ends[a] = _reference_wall(y[a], free[a], spread[a], walls[a], meet[a])
            absorbs = kinds[a][side] == ABSORB
            pushes[a] = np.where(absorbs, 0, push) * np.where(side, -1, 1)
            contacts.append((a, absorbs & (push > 0) & live, side, near, np.abs(past)))
        first, where = _reference_contacts(contacts, spread, numbers(HOUR), shares(CHOICE))
        if (where >= 0).any():
            _reference_stop(first, where, y, free, ends, pushes, spread, walls, kinds, numbers(PLACE), shares(AGAIN))
            fate[2], fate[3] = np.where(where >= 0, where, fate[2]), np.where(where >= 0, s + first, fate[3])
        for a in range(len(y)):
            _reference_feel(fate, np.where(live, pushes[a], 0), walls[a])
        y = np.where(live, ends, y)
    return y.T, fate.T


def _reference_wall(x, end, spread, walls, share):
    """Beside the nearer wall: which it is, distance before and after, the push, and the reflected end."""
    side = (x + end > walls[:, 0].sum()).astype(int)
    wall, sign = walls[side, 0], np.where(side, -1, 1)
    near, past = sign * (x - wall), sign * (end - wall)
    least = (near + past - np.sqrt((past - near) ** 2 - 2 * spread**2 * np.log(share))) / 2
    push = np.maximum(0, -least)
    return side, near, past, push, wall + sign * (past + push)


def _reference_contacts(contacts, spread, normal, choice):
    """When and where absorbing walls were first met: a part of the step, and 2 axis + end or -1."""
    first, where = np.full(normal.shape[1], 2.0), np.full(normal.shape[1], -1)
    for axis, hit, end, a, b in contacts:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            c = (a / b) * normal[axis] ** 2 / (2 * (a / spread[axis]) ** 2)
            root = 1 + c + np.sqrt(c * (2 + c))
            z = np.where(choice[axis] <= 1 / (1 + 1 / root), a / b / root, a / b * root)
            when = np.where(hit, z / (1 + z), 2.0)
        where = np.where(when < first, 2 * axis + end, where)
        first = np.minimum(first, when)
    return first, where


def _reference_stop(first, where, y, free, ends, pushes, spread, walls, kinds, place, again):
    """Ends and pushes of those who stop, for the part of the step before; in place."""
    stops, part = where >= 0, np.where(where >= 0, first, 0.5)
    for a in range(len(y)):
        there = y[a] + part * (free[a] - y[a]) + spread[a] * np.sqrt(part * (1 - part)) * place[a]
        push = np.zeros_like(there)
        if kinds[a].any():
            side, _, _, pushed, end = _reference_wall(y[a], there, spread[a] * np.sqrt(part), walls[a], again[a])
            absorbs = kinds[a][side] == ABSORB
            there = np.where(absorbs, np.clip(there, *walls[a, :, 0]), end)
            push = np.where(absorbs, 0, pushed) * np.where(side, -1, 1)
        own = where // 2 == a
        there = np.where(own, walls[a, np.maximum(where, 0) % 2, 0], there)
        ends[a] = np.where(stops, there, ends[a])
        pushes[a] = np.where(stops, np.where(own, 0, push), pushes[a])


def _reference_feel(fate, push, walls):
    """Weight and gain of a push with the sign of its wall; in place."""
    side, push = (push < 0).astype(int), np.abs(push)
    k, q = walls[side, 1], walls[side, 2]
    fate[1] += fate[0] * q * np.where(k * push == 0, push, -np.expm1(-k * push) / np.where(k == 0, 1, k))
    fate[0] *= np.exp(-k * push)


# -- one walker, everywhere --------------------------------------------------------------------------------------------


@everywhere
def beside(here, end, low, high, spread, word, one):
    """A step beside the nearer wall: whether that is the high one, the distances before and after, and the push."""
    zero = one - one
    top = here + end > low + high
    a = high - here if top else here - low
    b = high - end if top else end - low
    jump = b - a
    least = ((a + b) - math.sqrt(jump * jump + spread * spread * minus_two_log(word, one))) * (one / (one + one))
    return top, a, b, (-least if least < zero else zero)


@everywhere
def faded(z, left, one):
    """(1 - exp(-z))/z, the mean weight while it decays; `left` is exp(-z)."""
    two, three = one + one, one + one + one
    half, third, quarter, fifth = one / two, one / three, one / (two + two), one / (two + three)
    small = abs(z) < half * half * half * quarter * quarter
    series = one - half * z * (one - third * z * (one - quarter * z * (one - fifth * z)))
    return series if small else (one - left) / (one if small else z)


@everywhere
def hour(a, b, spread, normal, share):
    """When, as a part of the step, a walk from distance a to distance b meets a wall that it is known to meet."""
    one = spread / spread
    ratio = a / b  # infinite if it ends on the wall: then z is, or is one of Levy's
    c = normal * normal * (spread / a) * (spread / b) / (one + one)
    root = one + c + math.sqrt(c * (one + one + c))
    z = ratio / root if share * (one + root) <= root else ratio * root
    return one / (one + one / z)


# -- the CPU: LANES walkers side by side -------------------------------------------------------------------------------

_part = njit(fastmath=FASTMATH, **FLAGS, **AS_PART)  # called by kernels alone
_LANES, _LOW, _WORD = np.uint64(LANES), np.uint64(0xFFFFFFFF), np.uint64(32)
# Rows of the scratch memory, LANES numbers each; a row for each axis begins at these.
_HERE, _NEXT, _DRIFT, _NORMAL, _CONTACT = 0, 3, 6, 9, 13
_PUSH = 16
_WEIGHT, _GAIN, _SIDE, _TIME, _LIVE = 19, 20, 21, 22, 23
_ROWS = 24


@_part
def draw(words, walker, step, kind, k0, k1):
    """The words of one draw of LANES walkers, four rows."""
    wide_vectors()
    for lane in range(_LANES):
        n = walker + lane
        a, b, c, d = philox(n & _LOW, n >> _WORD, step, kind, k0, k1)
        words[lane] = np.uint32(a)
        words[_LANES + lane] = np.uint32(b)
        words[_LANES + _LANES + lane] = np.uint32(c)
        words[_LANES + _LANES + _LANES + lane] = np.uint32(d)


@_part
def normals(words, space, to, pairs, one):
    """Normal numbers of words, two rows a pair."""
    wide_vectors()
    for k in range(np.uint64(pairs)):
        at = (k + k) * _LANES
        for lane in range(_LANES):
            c, s = normal_pair(words[at + lane], words[at + _LANES + lane], one)
            space[np.uint64(to) + at + lane] = c
            space[np.uint64(to) + at + _LANES + lane] = s


@_part
def step_free(space, axis, spread, zero):
    """A step on an axis without walls."""
    wide_vectors()
    x, e = np.uint64((_HERE + axis) * LANES), np.uint64((_NEXT + axis) * LANES)
    d, z, live = np.uint64((_DRIFT + axis) * LANES), np.uint64((_NORMAL + axis) * LANES), np.uint64(_LIVE * LANES)
    for lane in range(_LANES):
        moved = space[d + lane] + spread * space[z + lane]
        space[e + lane] = space[x + lane] + (moved if space[live + lane] > zero else zero)


@_part
def step_walled(space, words, axis, spread, low, high, absorbs_low, absorbs_high, one):
    """A step on an axis with walls: the end, the push (negative from the high end), contacts with absorbing walls.

    Returns how many walkers met an absorbing wall. `absorbs_*` are 1 or 0.
    """
    wide_vectors()
    zero = one - one
    x, e, u = np.uint64((_HERE + axis) * LANES), np.uint64((_NEXT + axis) * LANES), np.uint64(axis * LANES)
    d, z, live = np.uint64((_DRIFT + axis) * LANES), np.uint64((_NORMAL + axis) * LANES), np.uint64(_LIVE * LANES)
    contact, p, met = np.uint64((_CONTACT + axis) * LANES), np.uint64((_PUSH + axis) * LANES), 0
    for lane in range(_LANES):
        here = space[x + lane]
        end = here + (space[d + lane] + spread * space[z + lane])
        top, _, b, push = beside(here, end, low, high, spread, words[u + lane], one)
        push = push if space[live + lane] > zero else zero
        absorbs = absorbs_high if top else absorbs_low
        touched, soft = push * absorbs, push * (one - absorbs)
        space[contact + lane] = touched
        met += 1 if touched > zero else 0
        stay = high - (b + push) if top else low + (b + push)
        space[e + lane] = stay if space[live + lane] > zero else here
        space[p + lane] = -soft if top else soft
    return met


@_part
def feel(space, axis, decay_low, decay_high, gain_low, gain_high, one):
    """Weight and gain of the push of reflecting walls."""
    wide_vectors()
    zero = one - one
    w, g, p = np.uint64(_WEIGHT * LANES), np.uint64(_GAIN * LANES), np.uint64((_PUSH + axis) * LANES)
    for lane in range(_LANES):
        push = space[p + lane]
        top = push < zero
        push = -push if top else push
        k, q = decay_high if top else decay_low, gain_high if top else gain_low
        left = exp(-k * push)
        space[g + lane] += space[w + lane] * q * push * faded(k * push, left, one)
        space[w + lane] *= left


@_part
def end_of(space, lane, axis, spread):
    """Where a walker would be after the step if there were no walls."""
    return space[(_HERE + axis) * LANES + lane] + (
        space[(_DRIFT + axis) * LANES + lane] + spread[axis] * space[(_NORMAL + axis) * LANES + lane])


@_part
def one_draw(walker, step, kind, k0, k1):
    """The words of one draw of one walker."""
    return philox(walker & _LOW, walker >> _WORD, step, np.uint64(kind), k0, k1)


@_part
def three_normals(walker, step, kind, k0, k1, one):
    """A draw of one walker as normal numbers."""
    w = one_draw(walker, step, kind, k0, k1)
    a, b = normal_pair(w[0], w[1], one)
    c, _ = normal_pair(w[2], w[3], one)
    return a, b, c


@_part
def first_contact(space, lane, ndim, words, spread, walls, walker, step, k0, k1, one):
    """When in the step, and where (2 axis + end), a walker first met an absorbing wall."""
    normal = three_normals(walker, step, HOUR, k0, k1, one)
    u = one_draw(walker, step, CHOICE, k0, k1)
    first, side = one + one, -1
    for axis in range(ndim):
        if space[(_CONTACT + axis) * LANES + lane] > one - one:
            here, end = space[(_HERE + axis) * LANES + lane], end_of(space, lane, axis, spread)
            word = words[axis * LANES + lane]
            top, a, b, _ = beside(here, end, walls[6 * axis], walls[6 * axis + 3], spread[axis], word, one)
            when = hour(a, abs(b), spread[axis], normal[axis], uniform(u[axis], one))
            if when < first:
                first, side = when, 2 * axis + (1 if top else 0)
    return first, side


@_part
def stop(space, lane, ndim, first, side, spread, walls, kinds, walker, step, k0, k1, one):
    """Stop one walker: its place, and the push of its other axes, at a part of the step."""
    zero = one - one
    normal = three_normals(walker, step, PLACE, k0, k1, one)
    u = one_draw(walker, step, AGAIN, k0, k1)
    for axis in range(ndim):
        here, low, high = space[(_HERE + axis) * LANES + lane], walls[6 * axis], walls[6 * axis + 3]
        there = here + first * (end_of(space, lane, axis, spread) - here)
        there = there + spread[axis] * math.sqrt(first * (one - first)) * normal[axis]
        pushed = zero
        if side >> 1 == axis:
            there = high if side & 1 else low
        elif kinds[2 * axis] != FREE:
            top, _, b, push = beside(here, there, low, high, spread[axis] * math.sqrt(first), u[axis], one)
            if kinds[2 * axis + (1 if top else 0)] == ABSORB:
                there = min(max(there, low), high)
            else:
                there = high - (b + push) if top else low + (b + push)
                pushed = -push if top else push
        space[(_NEXT + axis) * LANES + lane] = there
        space[(_PUSH + axis) * LANES + lane] = pushed
    space[_SIDE * LANES + lane] = side
    space[_LIVE * LANES + lane] = zero


@_part
def load(x, drift, varied, ndim, begin, space, steps, one):
    """Put the walkers from `begin` on into the scratch memory; the last one fills what is left."""
    last = x.size // ndim - 1
    for lane in range(LANES):
        i = min(begin + lane, last)
        for axis in range(ndim):
            space[(_HERE + axis) * LANES + lane] = x[i * ndim + axis]
            space[(_DRIFT + axis) * LANES + lane] = drift[i * ndim * varied + axis]
        space[_WEIGHT * LANES + lane] = one
        space[_GAIN * LANES + lane] = one - one
        space[_SIDE * LANES + lane] = -one
        space[_TIME * LANES + lane] = steps
        space[_LIVE * LANES + lane] = one


@_part
def store(positions, fate, ndim, begin, space):
    """Bring the walkers from `begin` on home."""
    for lane in range(min(LANES, positions.size // ndim - begin)):
        for axis in range(ndim):
            positions[(begin + lane) * ndim + axis] = space[(_HERE + axis) * LANES + lane]
        for k in range(4):
            fate[(begin + lane) * 4 + k] = space[(_WEIGHT + k) * LANES + lane]


@_part
def step_block(space, words, ndim, spread, walls, kinds, walker, step, s, k0, k1, one):
    """One step of a block; returns how many walkers met an absorbing wall."""
    draw(words, walker, step, np.uint64(MOVE), k0, k1)
    normals(words, space, _NORMAL * LANES, 2 if ndim > 2 else 1, one)
    zero, met, walled = one - one, 0, False
    for axis in range(ndim):
        walled = walled or kinds[2 * axis] != FREE
    if walled:
        draw(words, walker, step, np.uint64(MEET), k0, k1)
    for axis in range(ndim):
        if kinds[2 * axis] == FREE:
            step_free(space, axis, spread[axis], zero)
            for lane in range(LANES):
                space[(_CONTACT + axis) * LANES + lane] = zero
            continue
        w, k = 6 * axis, 2 * axis
        at_low, at_high = kinds[k] == ABSORB, kinds[k + 1] == ABSORB
        met += step_walled(space, words, axis, spread[axis], walls[w], walls[w + 3], one if at_low else zero,
                           one if at_high else zero, one)
    for lane in range(LANES if met else 0):
        if _touched(space, ndim, lane) > zero:
            n = walker + np.uint64(lane)
            first, side = first_contact(space, lane, ndim, words, spread, walls, n, step, k0, k1, one)
            stop(space, lane, ndim, first, side, spread, walls, kinds, n, step, k0, k1, one)
            space[_TIME * LANES + lane] = np.float64(s) + first
    for axis in range(ndim):
        w = 6 * axis
        if walls[w + 1] != zero or walls[w + 2] != zero or walls[w + 4] != zero or walls[w + 5] != zero:
            feel(space, axis, walls[w + 1], walls[w + 4], walls[w + 2], walls[w + 5], one)
    for i in range(3 * LANES):
        space[_HERE * LANES + i] = space[_NEXT * LANES + i]
    return met


@_part
def _touched(space, ndim, lane):
    most = space[_CONTACT * LANES + lane]
    for axis in range(1, ndim):
        most = max(most, space[(_CONTACT + axis) * LANES + lane])
    return most


@kernel()
def walk(x, spread, drift, walls, kinds, steps, first, step, k0, k1, blocks, end, space, words, positions, fate, one):
    """The walkers of blocks `blocks` to `end`, all their steps."""
    ndim = spread.size
    varied = 1 if drift.size > ndim else 0
    for block in range(blocks, end):
        load(x, drift, varied, ndim, block * LANES, space, steps, one)
        walker = np.uint64(first) + np.uint64(block) * _LANES
        for s in range(steps):
            met = step_block(space, words, ndim, spread, walls, kinds, walker, np.uint64(step) + np.uint64(s), s,
                             k0, k1, one)
            if met:
                alive = 0
                for lane in range(LANES):
                    alive += 1 if space[_LIVE * LANES + lane] > one - one else 0
                if alive == 0:
                    break
        store(positions, fate, ndim, block * LANES, space)


def outputs(x, spread, drift, walls, kinds, steps, seed, first=0, step=0):
    """Arrays for positions and fate."""
    return np.empty_like(x), np.empty((len(x), 4), x.dtype)


def _checked(x, spread, drift, walls, kinds, steps, first, step):
    ndim = x.shape[1]
    shapes = {"spread": (spread, (ndim,)), "walls": (walls, (ndim, 2, 3)), "kinds": (kinds, (ndim, 2))}
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if drift.shape not in ((1, ndim), x.shape):
        raise ValueError(f"drift has shape {drift.shape}, expected {(1, ndim)} or {x.shape}")
    if not 1 <= ndim <= 3 or ((kinds == FREE).sum(1) == 1).any():
        raise ValueError("a walk has one to three axes, each with two walls or none")
    if not (0 <= step and step + steps < 1 << 32):
        raise ValueError(f"a walk has fewer than 2**32 steps, not {step + steps}")


def cpu(x, spread, drift, walls, kinds, steps, seed, first=0, step=0, out=None, threads=None):
    """The walk on the CPU; walker i is number `first + i`, its first step number `step`."""
    _checked(x, spread, drift, walls, kinds, steps, first, step)
    positions, fate = outputs(x, spread, drift, walls, kinds, steps, seed) if out is None else out
    blocks, turn, one, keys = -(-len(x) // LANES), count(), x.dtype.type(1), split(seed)
    given = [np.ascontiguousarray(v, x.dtype).reshape(-1) for v in (x, spread, drift, walls)]
    flags = np.ascontiguousarray(kinds, np.int64).reshape(-1)
    flat = positions.reshape(-1), fate.reshape(-1)

    def task():
        space, words = np.zeros(_ROWS * LANES, x.dtype), np.zeros(4 * LANES, np.uint32)
        while (begin := next(turn) * SHARE) < blocks:
            walk(*given, flags, steps, first, step, *keys, begin, min(begin + SHARE, blocks), space, words, *flat, one)

    threads = default_threads() if threads is None else threads
    together(task, min(threads, max(-(-blocks // SHARE), 1)))
    return (positions, fate) if out is None else out


def cuda(x, spread, drift, walls, kinds, steps, seed, first=0, step=0, out=None, stream=None):
    """The walk on the GPU, one thread a walker."""
    from fastdiff.kernels._random_walk_cuda import launch

    _checked(x, spread, drift, walls, kinds, steps, first, step)
    return launch(x, spread, drift, walls, kinds, steps, seed, first, step, out, stream)


# -- the contract ------------------------------------------------------------------------------------------------------


def _sample(shape, dtype, rng):
    """Walkers in a box with walls of every kind, and an axis without walls if there are three."""
    n, ndim = shape
    walls = np.zeros((ndim, 2, 3))
    walls[:, 1, 0] = [1.0, 2.0, 1.5][:ndim]
    kinds = np.array([[REFLECT, ABSORB], [REFLECT, REFLECT], [FREE, FREE]])[:ndim]
    walls[0, 0, 1:] = 0.5, 0.25
    walls[0, 1, 1:] = 9.0, 9.0  # which an absorbing wall does not feel
    walls[1:2, :, 1:] = [[0.0, 0.3], [0.75, 0.0]]
    x = rng.uniform(0, 1, (n, ndim)) * walls[:, 1, 0]
    drift = rng.uniform(-0.02, 0.02, (n if ndim > 1 else 1, ndim))
    return dict(x=x.astype(dtype), spread=rng.uniform(0.1, 0.2, ndim).astype(dtype), drift=drift.astype(dtype),
                walls=walls.astype(dtype), kinds=kinds, steps=9, seed=int(rng.integers(1 << 62)), first=(1 << 32) - 5,
                step=3)


def _machine_code(dtype):
    from numba import from_dtype, types

    kind = from_dtype(dtype)
    space, words, whole = types.Array(kind, 1, "C"), types.Array(types.uint32, 1, "C"), types.int64
    return [(normals, (words, space, whole, whole, kind)), (step_free, (space, whole, kind, kind)),
            (step_walled, (space, words, whole, *[kind] * 6))]


def _ptx(dtype):
    from fastdiff.kernels._random_walk_cuda import launches

    return [Launch(*entry) for entry in launches(dtype)]


_SHAPES = {(1, 1): "one walker", (0, 2): "nobody", (64, 2): "one block", (37, 3): "a part of a block, all axes",
           (2053, 2): "several shares of the threads, prime", (1021, 1): "prime"}

KERNELS = [
    Kernel(name="random_walk", reference=reference, cpu=cpu, cuda=cuda, sample=_sample, outputs=outputs,
           shapes=_SHAPES, large=(1 << 16, 2), machine_code=_machine_code, ptx=_ptx, order=(0, 0), bytes_per_cell=2,
           flops_per_cell=120, tolerance=8),
]
