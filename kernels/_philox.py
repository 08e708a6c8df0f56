"""Philox 4x32-10: counter-based random numbers, the same ones for any number of threads, on CPU and GPU.

Ten rounds turn a counter of four 32-bit words and a key of two into four random words. Nothing is kept between calls:
number n of stream s is a function of (seed, s, n) alone. A kernel gives every draw a counter of its own.

    key     = seed, a 64-bit number: its low word, its high word
    counter = (n low, n high, stream low, stream high)

Words are held in uint64, since their products need 64 bits; each is below 2**32. `uniform` and `normal_pair` turn
words into floating-point numbers of the type of their argument `one`; both have 32 random bits. Everything here is
plain Python marked for the compiler, so that CPU kernels, CUDA kernels and the simulator run the same lines.

Sources: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3 and table 2;
Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Statist. 29 (1958) 610; the logarithm,
sine and cosine are those of fdlibm (float64) and Cephes and musl (float32), on the ranges that occur here.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from fastdiff.kernels._jit import FASTMATH
from fastdiff.kernels._part import AS_PART

OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy"}
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # what each round adds to the key
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def compiled(choose, function) -> None:
    """Let kernels call `function`; inlined on the CPU: a call would keep the loop around it from using vectors."""
    overload(function, jit_options={**OPTIONS, **AS_PART, "forceinline": True}, strict=False, target="cpu")(choose)
    overload(function, jit_options=OPTIONS, strict=False, target="cuda")(choose)


def everywhere(function):
    """Decorator: a plain function that kernels may call."""
    compiled(lambda *arguments: function, function)
    return function


def split(number: int) -> tuple[np.uint64, np.uint64]:
    """The low and the high word of a whole number from 0 to 2**64 - 1."""
    if not 0 <= number < 1 << 64:
        raise ValueError(f"a seed or stream is a whole number from 0 to 2**64 - 1, not {number!r}")
    return np.uint64(int(number) & 0xFFFFFFFF), np.uint64(int(number) >> 32)


@everywhere
def _round(c0, c1, c2, c3, k0, k1):
    a, b = _M0 * c0, _M1 * c2
    return (b >> _HIGH) ^ c1 ^ k0, b & _LOW, (a >> _HIGH) ^ c3 ^ k1, a & _LOW, (k0 + _W0) & _LOW, (k1 + _W1) & _LOW


@everywhere
def philox(c0, c1, c2, c3, k0, k1):
    """Four random words of a counter (c0, c1, c2, c3) and a key (k0, k1); all uint64 below 2**32, or arrays of them."""
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


# -- words become numbers ----------------------------------------------------------------------------------------------

_HALF_BIT = 2.0**-33  # words stand for the middles of 2**32 equal parts of (0, 1)


def uniform(word, one):
    """A number in (0, 1] of the type of `one`: (word + 1/2) / 2**32, rounded."""
    return _uniform32(word, one) if isinstance(one, np.float32) else _uniform64(word, one)


compiled(lambda word, one: _uniform32 if one == types.float32 else _uniform64, uniform)


def normal_pair(a, b, one):
    """Two independent normal numbers of the type of `one`, from two words (Box and Muller)."""
    return _normal_pair32(a, b, one) if isinstance(one, np.float32) else _normal_pair64(a, b, one)


compiled(lambda a, b, one: _normal_pair32 if one == types.float32 else _normal_pair64, normal_pair)


def minus_two_log(word, one):
    """-2 ln of the uniform number of a word, of the type of `one`."""
    return _minus_two_log32(word, one) if isinstance(one, np.float32) else _minus_two_log64(word, one)


compiled(lambda word, one: _minus_two_log32 if one == types.float32 else _minus_two_log64, minus_two_log)


_BIT32, _HALF32 = np.float32(2.0**-32), np.float32(_HALF_BIT)
_BIT64, _HALF64 = np.float64(2.0**-32), np.float64(_HALF_BIT)


@everywhere
def _uniform32(word, one):
    return np.float32(np.uint32(word)) * _BIT32 + _HALF32


@everywhere
def _uniform64(word, one):
    return np.float64(np.uint32(word)) * _BIT64 + _HALF64


_TWO, _QUADRANT = np.uint64(2), np.uint64(30)
_ODD, _TURNED = np.uint64(1), np.uint64(2)
_ANGLE32, _MINUS_TWO32, _ONE32 = np.float32(np.pi / 4 * 2.0**-31), np.float32(-2), np.float32(1)
_ANGLE64, _MINUS_TWO64, _ONE64 = np.float64(np.pi / 4 * 2.0**-31), np.float64(-2), np.float64(1)


@everywhere
def _minus_two_log32(word, one):
    return _MINUS_TWO32 * _log32(_uniform32(word, one))


@everywhere
def _normal_pair32(a, b, one):
    r = np.float32(math.sqrt(_minus_two_log32(a, one)))
    word = np.uint64(b)
    y = np.float32(np.uint32((word << _TWO) & _LOW).view(np.int32)) * _ANGLE32
    c, s = _circle32(y)
    c, s = _turned(c, s, word >> _QUADRANT)
    return r * c, r * s


@everywhere
def _minus_two_log64(word, one):
    return _MINUS_TWO64 * _log64(_uniform64(word, one))


@everywhere
def _normal_pair64(a, b, one):
    r = np.float64(math.sqrt(_minus_two_log64(a, one)))
    word = np.uint64(b)
    y = np.float64(np.uint32((word << _TWO) & _LOW).view(np.int32)) * _ANGLE64
    c, s = _circle64(y)
    c, s = _turned(c, s, word >> _QUADRANT)
    return r * c, r * s


@everywhere
def _turned(c, s, quadrant):
    """Cosine and sine, a number of quarter turns further on."""
    odd = (quadrant & _ODD) != np.uint64(0)
    x, y = (s if odd else c), (c if odd else s)
    return (-x if ((quadrant + _ODD) & _TURNED) != np.uint64(0) else x,
            -y if (quadrant & _TURNED) != np.uint64(0) else y)


# -- logarithm on (0, 1], cosine and sine on [-pi/4, pi/4] -----------------------------------------------------------

_SQRT_HALF32, _BIAS32, _MANTISSA32 = np.uint64(0x3F3504F3), np.uint64(0x3F800000), np.uint64(0x007FFFFF)
_SHIFT32, _EXPONENT32 = np.uint64(23), np.int64(0x7F)
_L32 = tuple(np.float32(float.fromhex(h)) for h in (
    "0xaaaaaa.0p-24", "0xccce13.0p-25", "0x91e9ee.0p-25", "0xf89e26.0p-26"))
_LN2_32 = np.float32(6.9313812256e-01), np.float32(9.0580006145e-06)
_HALF_32, _TWO_32 = np.float32(0.5), np.float32(2)
_S32 = np.float32(-1.6666654611e-1), np.float32(8.3321608736e-3), np.float32(-1.9515295891e-4)
_C32 = np.float32(4.166664568298827e-2), np.float32(-1.388731625493765e-3), np.float32(2.443315711809948e-5)


@everywhere
def _log32(u):
    bits = np.uint64(np.float32(u).view(np.uint32)) + (_BIAS32 - _SQRT_HALF32)
    k = np.float32(np.int32(np.int64(bits >> _SHIFT32) - _EXPONENT32))
    f = np.uint32((bits & _MANTISSA32) + _SQRT_HALF32).view(np.float32) - _ONE32
    s = f / (_TWO_32 + f)
    z = s * s
    w = z * z
    rest = w * (_L32[1] + w * _L32[3]) + z * (_L32[0] + w * _L32[2])
    half = _HALF_32 * f * f
    return k * _LN2_32[0] - ((half - (s * (half + rest) + k * _LN2_32[1])) - f)


@everywhere
def _circle32(y):
    z = y * y
    s = y + y * z * (_S32[0] + z * (_S32[1] + z * _S32[2]))
    return _ONE32 - _HALF_32 * z + z * z * (_C32[0] + z * (_C32[1] + z * _C32[2])), s


_SQRT_HALF64, _BIAS64 = np.uint64(0x3FE6A09E667F3BCD), np.uint64(0x3FF0000000000000)
_MANTISSA64, _SHIFT64, _EXPONENT64 = np.uint64(0x000FFFFFFFFFFFFF), np.uint64(52), np.int64(0x3FF)
_L64 = tuple(map(np.float64, (
    6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
    1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01)))
_LN2_64 = np.float64(6.93147180369123816490e-01), np.float64(1.90821492927058770002e-10)
_HALF_64, _TWO_64 = np.float64(0.5), np.float64(2)
_S64 = tuple(map(np.float64, (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10)))
_C64 = tuple(map(np.float64, (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11)))


@everywhere
def _log64(u):
    bits = np.float64(u).view(np.uint64) + (_BIAS64 - _SQRT_HALF64)
    k = np.float64(np.int32(np.int64(bits >> _SHIFT64) - _EXPONENT64))
    f = np.uint64((bits & _MANTISSA64) + _SQRT_HALF64).view(np.float64) - _ONE64
    s = f / (_TWO_64 + f)
    z = s * s
    w = z * z
    even = w * (_L64[1] + w * (_L64[3] + w * _L64[5]))
    rest = even + z * (_L64[0] + w * (_L64[2] + w * (_L64[4] + w * _L64[6])))
    half = _HALF_64 * f * f
    return k * _LN2_64[0] - ((half - (s * (half + rest) + k * _LN2_64[1])) - f)


@everywhere
def _circle64(y):
    z = y * y
    s = y + y * z * (_S64[0] + z * (_S64[1] + z * (_S64[2] + z * (_S64[3] + z * (_S64[4] + z * _S64[5])))))
    c = _C64[0] + z * (_C64[1] + z * (_C64[2] + z * (_C64[3] + z * (_C64[4] + z * _C64[5]))))
    return _ONE64 - _HALF_64 * z + z * z * c, s
