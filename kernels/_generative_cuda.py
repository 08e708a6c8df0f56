"""CUDA kernels of the generative models: noise, reverse steps, loss, group normalisation. See the families' files.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

import math
from functools import lru_cache

import numpy as np
from numba import from_dtype

from fastdiff.kernels import _cuda
from fastdiff.kernels._math import cos, sin
from fastdiff.kernels.noise import GROUP, LANES, normal4

cuda = _cuda.toolkit()


@cuda.jit
def noise_given(u, coefficients, noise, out, target, size, two):
    for i in range(cuda.grid(1), u.size, cuda.gridsize(1)):
        k = 4 * (i // size)
        out[i] = coefficients[k] * u[i] + coefficients[k + 1] * noise[i]
        if two:
            target[i] = coefficients[k + 2] * u[i] + coefficients[k + 3] * noise[i]


@cuda.jit
def noise_drawn(u, coefficients, words, out, target, size, two):
    per = LANES * ((size + GROUP - 1) // GROUP)  # counters of a sample
    for c in range(cuda.grid(1), (u.size // size) * per, cuda.gridsize(1)):
        b, n = c // per, c % per
        e = normal4(np.uint64(n), np.uint64(b) + words[4], words[0], words[1], words[2], words[3], coefficients[0])
        place = n // LANES * GROUP + n % LANES
        for w in range(4):
            if place + LANES * w < size:
                i = b * size + place + LANES * w
                z = e[w]
                out[i] = coefficients[4 * b] * u[i] + coefficients[4 * b + 1] * z
                if two:
                    target[i] = coefficients[4 * b + 2] * u[i] + coefficients[4 * b + 3] * z


@cuda.jit
def noise_alone(words, one, out, size):
    per = LANES * ((size + GROUP - 1) // GROUP)
    for c in range(cuda.grid(1), (out.size // size) * per, cuda.gridsize(1)):
        b, n = c // per, c % per
        e = normal4(np.uint64(n), np.uint64(b) + words[4], words[0], words[1], words[2], words[3], one[0])
        place = n // LANES * GROUP + n % LANES
        for w in range(4):
            if place + LANES * w < size:
                out[b * size + place + LANES * w] = e[w]


@cuda.jit
def step_given(u, m, without, old, noise, k, out, data, guided, has_old, noisy, estimate):
    for i in range(cuda.grid(1), u.size, cuda.gridsize(1)):
        x, e = u[i], m[i]
        if guided:
            e = e + k[8] * (e - without[i])
        d = k[0] * x + k[1] * e
        if d > k[2]:
            d = k[2]
        if d < -k[2]:
            d = -k[2]
        new = k[3] * d + (k[4] * x + k[5] * e)
        if has_old:
            new = new + k[6] * old[i]
        if noisy:
            new = new + k[7] * noise[i]
        out[i] = new
        if estimate:
            data[i] = d


@cuda.jit
def step_drawn(u, m, without, old, k, words, out, data, size, guided, has_old, estimate):
    per = LANES * ((size + GROUP - 1) // GROUP)
    for c in range(cuda.grid(1), (u.size // size) * per, cuda.gridsize(1)):
        b, n = c // per, c % per
        z = normal4(np.uint64(n), np.uint64(b) + words[4], words[0], words[1], words[2], words[3], k[0])
        place = n // LANES * GROUP + n % LANES
        for w in range(4):
            if place + LANES * w < size:
                i = b * size + place + LANES * w
                x, e = u[i], m[i]
                if guided:
                    e = e + k[8] * (e - without[i])
                d = k[0] * x + k[1] * e
                if d > k[2]:
                    d = k[2]
                if d < -k[2]:
                    d = -k[2]
                new = k[3] * d + (k[4] * x + k[5] * e) + k[7] * z[w]
                if has_old:
                    new = new + k[6] * old[i]
                out[i] = new
                if estimate:
                    data[i] = d


@lru_cache(maxsize=8)
def loss_kernels(dtype, threads):
    """The kernels of the loss and its gradient, for blocks of so many threads."""
    kind = from_dtype(np.dtype(dtype))

    @cuda.jit
    def square_sums(u, v, weight, out, size):
        parts = cuda.shared.array(threads, kind)
        b, t = cuda.blockIdx.x, cuda.threadIdx.x
        total = weight[b] - weight[b]
        for i in range(b * size + t, (b + 1) * size, threads):
            d = u[i] - v[i]
            total += d * d
        parts[t] = total
        cuda.syncthreads()
        half = threads // 2
        while half > 0:
            if t < half:
                parts[t] += parts[t + half]
            cuda.syncthreads()
            half //= 2
        if t == 0:
            out[b] = weight[b] * parts[0]

    @cuda.jit
    def scaled_difference(u, v, k, out, size):
        for i in range(cuda.grid(1), u.size, cuda.gridsize(1)):
            out[i] = k[i // size] * (u[i] - v[i])

    return square_sums, scaled_difference


def _total_of(threads):
    """The sum of the values of a block's threads, of which there are so many; every thread gets it."""

    @cuda.jit(device=True)
    def total(parts, value):
        t, half = cuda.threadIdx.x, threads // 2
        parts[t] = value
        cuda.syncthreads()
        while half > 0:
            if t < half:
                parts[t] += parts[t + half]
            cuda.syncthreads()
            half //= 2
        value = parts[0]
        cuda.syncthreads()
        return value

    return total


@lru_cache(maxsize=8)
def group_norm_kernels(dtype, threads):
    """Forward and backward, for blocks of so many threads."""
    kind, total = from_dtype(np.dtype(dtype)), _total_of(threads)

    @cuda.jit
    def forward(u, gain, bias, residual, sizes, out, mean, rate, channels, points, silu, added):
        parts = cuda.shared.array(threads, kind)
        g, t, one = cuda.blockIdx.x, cuda.threadIdx.x, sizes[5]
        first, last = g * channels * points, (g + 1) * channels * points
        value = sizes[4]
        for i in range(first + t, last, threads):
            value += u[i]
        m = total(parts, value) / sizes[2]
        value = sizes[4]
        for i in range(first + t, last, threads):
            value += (u[i] - m) * (u[i] - m)
        r = one / math.sqrt(total(parts, value) / sizes[2] + sizes[3])
        if t == 0:
            mean[g] = m
            rate[g] = r
        for i in range(first + t, last, threads):
            c = i // points
            z = gain[c] * ((u[i] - m) * r) + bias[c]
            y = z / (one + math.exp(-z)) if silu else z
            out[i] = y + residual[i] if added else y

    @cuda.jit
    def backward(u, cotangent, mean, rate, gain, bias, sizes, dx, dgain, dbias, channels, points, silu):
        parts = cuda.shared.array(threads, kind)
        g, t, one = cuda.blockIdx.x, cuda.threadIdx.x, sizes[5]
        m, r, first, second = mean[g], rate[g], sizes[4], sizes[4]
        for c in range(g * channels, (g + 1) * channels):
            one_sum, xn_sum = sizes[4], sizes[4]
            for i in range(c * points + t, (c + 1) * points, threads):
                xn = (u[i] - m) * r
                dz = cotangent[i]
                if silu:
                    z = gain[c] * xn + bias[c]
                    s = one / (one + math.exp(-z))
                    dz = dz * (s * (one + z * (one - s)))
                dx[i] = dz
                one_sum += dz
                xn_sum += dz * xn
            one_sum = total(parts, one_sum)
            xn_sum = total(parts, xn_sum)
            if t == 0:
                dbias[c] = one_sum
                dgain[c] = xn_sum
            first += gain[c] * one_sum
            second += gain[c] * xn_sum
        first, second = first / sizes[2], second / sizes[2]
        for c in range(g * channels, (g + 1) * channels):
            for i in range(c * points + t, (c + 1) * points, threads):
                dx[i] = r * ((gain[c] * dx[i] - first) - ((u[i] - m) * r) * second)

    return forward, backward


@cuda.jit
def embedding(t, frequencies, out):
    half = frequencies.size
    for i in range(cuda.grid(1), t.size * half, cuda.gridsize(1)):
        b, j = i // half, i % half
        x = t[b] * frequencies[j]
        out[2 * b * half + j] = cos(x)
        out[(2 * b + 1) * half + j] = sin(x)
