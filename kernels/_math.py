"""Elementary functions that vectorise: exp, log, tanh, sigmoid, sin, cos, tan, sinh, cosh, erf, cbrt and power.

Numba has no vector mathematics library: a loop that calls `math.exp` calls the C library for each element. These are
polynomials and bit operations without branches, so that the loop around them becomes vector code. They take and give
float32 or float64 (integers become float64); float32 code holds no float64. Call them in any kernel, on the CPU or
on the GPU, where all but sin, cos and tan are CUDA's own; in plain Python (and so in the CUDA simulator) they are
NumPy's.

Largest errors on the CPU, measured over dense ranges, in units in the last place:

               exp   log  tanh  sigmoid  sin  cos  tan  sinh  cosh  erf  cbrt
    float32    1.0   0.8  1.3   1.9      1.4  1.4  2.8  1.6   1.4   1.1  0.7
    float64    1.0   0.8  1.3   1.6      1.9  1.9  2.7  1.4   1.2   1.0  0.7

Special values: exp overflows to infinity and underflows to zero through the subnormal numbers (which a march flushes
to zero); log(0) is -infinity and log of a negative number NaN; NaN stays NaN. sin, cos and tan are good for
|x| <= 12800 in float32 and 1.6e6 in float64, and NaN beyond.

Coefficients: minimax polynomials by Remez exchange, relative to the function. Argument reduction after Cody and
Waite, Software Manual for the Elementary Functions, Prentice-Hall 1980; log as in Sun's fdlibm, e_log.c.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fastdiff.kernels._jit import FASTMATH, inline_here
from fastdiff.kernels._part import callable_part, overload_part

_OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy"}

# -- what NumPy does, for plain Python and the simulator ------------------------------------------------------------


def exp(x) -> Any:
    """e to the x."""
    return np.exp(x)


def log(x) -> Any:
    """Natural logarithm."""
    return np.log(x)


def tanh(x) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(x)


def sigmoid(x) -> Any:
    """1 / (1 + exp(-x))."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, np.ones_like(e)) / (1 + e)


def sqrt(x) -> Any:
    """Square root."""
    return np.sqrt(x)


def sin(x) -> Any:
    """Sine of an angle in radians."""
    return np.sin(x)


def cos(x) -> Any:
    """Cosine of an angle in radians."""
    return np.cos(x)


def tan(x) -> Any:
    """Tangent of an angle in radians."""
    return np.tan(x)


def sinh(x) -> Any:
    """Hyperbolic sine."""
    return np.sinh(x)


def cosh(x) -> Any:
    """Hyperbolic cosine."""
    return np.cosh(x)


def erf(x) -> Any:
    """Error function, 2/sqrt(pi) times the integral of exp(-t²) from 0 to x."""
    values = np.vectorize(math.erf, otypes=[np.float64])(x)
    return np.asarray(values).astype(np.result_type(x))[()]


def cbrt(x) -> Any:
    """Cube root, of negative numbers too."""
    return np.cbrt(x)


def power(x, p) -> Any:
    """x to the power p, for x >= 0, as exp(p log x): the error grows with |p log x|, 2 ulp for each unit of it.

    0 to a positive power is 0; a negative x gives NaN. `p` has x's type.
    """
    return np.where(x == 0, np.where(p > 0, 0, np.where(p < 0, np.inf, 1)), np.exp(p * np.log(x))).astype(
        np.result_type(x))[()]


def exp_minus(x, constants) -> Any:
    """exp(-x) for |x| <= 87, with `exp_minus_constants` as a tuple of floats of x's type.

    For long loops: constants that come as values stay in registers, those written in code are read again for each
    vector. The power of two is added to the exponent. At most 1.6 units in the last place; float64 is `exp`.
    """
    return np.exp(-x)


def exp_minus_constants() -> tuple[float, ...]:
    """log2(e) negated, what rounds, ln 2 in float32 and its rest, and the polynomial of exp(-x)."""
    return (-1.4426950408889634, 1.5 * 2.0**23, float(np.float32(math.log(2))), -1.9046542999e-09, 1.0,
            -0.9999997071728319, 0.4999914949690384, -0.1666763623059173, 0.041897933911257235, -0.008290314046583877)


# -- bits -----------------------------------------------------------------------------------------------------------


def _layout(kind):
    """LLVM's integer of a float type, its bits of mantissa, and the constant whose last bits count in ones."""
    wide = kind == types.float64
    return (ir.IntType(64), 52, 0x4338 << 48) if wide else (ir.IntType(32), 23, 0x4B40 << 16)


def select(condition, yes, no) -> Any:
    """`yes if condition else no` without a branch."""
    return yes if condition else no


@intrinsic
def _select(typingctx, condition, yes, no):
    def codegen(context, builder, sig, args):
        return builder.select(args[0], args[1], args[2])

    return yes(types.boolean, yes, yes), codegen


@overload_part(select, **_OPTIONS)
def _select_compiled(condition, yes, no):
    return lambda condition, yes, no: _select(condition, yes, no)


@intrinsic
def _two_to(typingctx, t):
    """2**n for t = n + 1.5 * 2**(bits of the mantissa); n from -126 to 127, or -1022 to 1023."""

    def codegen(context, builder, sig, args):
        kind, mantissa, _ = _layout(sig.args[0])
        bias = (1 << (kind.width - mantissa - 2)) - 1
        bits = builder.shl(builder.bitcast(args[0], kind), ir.Constant(kind, mantissa))
        return builder.bitcast(builder.add(bits, ir.Constant(kind, bias << mantissa)), args[0].type)

    return t(t), codegen


def _bit(place):
    @intrinsic
    def bit(typingctx, t):
        def codegen(context, builder, sig, args):
            kind, _, _ = _layout(sig.args[0])
            bits = builder.and_(builder.bitcast(args[0], kind), ir.Constant(kind, 1 << place))
            return builder.icmp_unsigned("!=", bits, ir.Constant(kind, 0))

        return types.boolean(t), codegen

    return bit


_odd, _second = _bit(0), _bit(1)  # whether the last bit of a float is set, and the one before


@intrinsic
def _with_sign(typingctx, size, sign):
    """`size`, which is not negative, with the sign of `sign`."""

    def codegen(context, builder, sig, args):
        kind, _, _ = _layout(sig.args[0])
        size, sign = (builder.bitcast(a, kind) for a in args)
        sign = builder.and_(sign, ir.Constant(kind, 1 << (kind.width - 1)))
        return builder.bitcast(builder.or_(size, sign), args[0].type)

    return size(size, size), codegen


@intrinsic
def _scaled(typingctx, x, t):
    """x 2**n for t as in `_two_to`, where x and the product are normal numbers."""

    def codegen(context, builder, sig, args):
        kind, mantissa, _ = _layout(sig.args[0])
        power = builder.shl(builder.bitcast(args[1], kind), ir.Constant(kind, mantissa))
        return builder.bitcast(builder.add(builder.bitcast(args[0], kind), power), args[0].type)

    return x(x, x), codegen


@intrinsic
def _parts(typingctx, x):
    """(m, t) with x = m 2**n, m in [sqrt(1/2), sqrt(2)), t = n + 1.5 * 2**(bits of the mantissa); x normal."""

    def codegen(context, builder, sig, args):
        kind, mantissa, magic = _layout(sig.args[0])
        root = 0x3FE6A09E667F3BCD if mantissa == 52 else 0x3F3504F3
        one = ((1 << (kind.width - mantissa - 2)) - 1) << mantissa
        bits = builder.add(builder.bitcast(args[0], kind), ir.Constant(kind, one - root))
        power = builder.lshr(bits, ir.Constant(kind, mantissa))
        rest = builder.add(builder.and_(bits, ir.Constant(kind, (1 << mantissa) - 1)), ir.Constant(kind, root))
        count = builder.add(power, ir.Constant(kind, magic - (one >> mantissa)))
        pair = [builder.bitcast(v, args[0].type) for v in (rest, count)]
        return context.make_tuple(builder, sig.return_type, pair)

    return types.UniTuple(x, 2)(x), codegen


# -- the functions, for a float type F ------------------------------------------------------------------------------


def _polynomial(F, *coefficients):
    """c0 + x (c1 + x (c2 + ...)) with constants of type F."""
    scope: dict[str, Any] = {f"c{k}": F(c) for k, c in enumerate(coefficients)}
    scope["inline_here"] = inline_here
    text = f"c{len(coefficients) - 1}"
    for k in reversed(range(len(coefficients) - 1)):
        text = f"c{k} + x * ({text})"
    exec(f"def polynomial(x):\n    inline_here()\n    return {text}", scope)
    return _part(scope["polynomial"])


_part = callable_part(**_OPTIONS)


def _exp_for(F, less=0):
    """e**x / 2**less, which overflows later."""
    wide, less = F is np.float64, F(less)
    low, high, magic = (F(-746), F(711), F(1.5 * 2**52)) if wide else (F(-104), F(90), F(1.5 * 2**23))
    log2e, half, one = F(1 / math.log(2)), F(0.5), F(1)
    # ln 2 in two parts, the first so short that n times it is exact
    ln2, rest = ((F(6.93147180369123816490e-01), F(1.90821492927058770002e-10)) if wide
                 else (F(0.693359375), F(-2.1219444005469059e-4)))
    q = _polynomial(F, *(
        (0.50000000000000000447, 0.16666666666666683568, 0.041666666666666085622, 0.0083333333333169200681,
         0.0013888888889118612292, 0.00019841269896671192969, 0.000024801586922207090718, 2.7557234570055504117e-6,
         2.755758476193090306e-7, 2.5112140262461670481e-8, 2.082593817014043276e-9) if wide else
        (0.49999993430335666543, 0.16666520182479188697, 0.041668392359123769447, 0.0083687754841131638325,
         0.0013814510073218355739)))

    @_part
    def exp(x):
        inline_here()
        x = _select(x < low, low, _select(x > high, high, x))
        t = x * log2e + magic
        n = t - magic
        r = (x - n * ln2) - n * rest
        value = (r + (r * r) * q(r)) + one
        first = n * half + magic  # in two factors: 2**n itself may overflow
        second = ((n - less) - (first - magic)) + magic
        return (value * _two_to(first)) * _two_to(second)

    return exp


def _log_for(F):
    wide = F is np.float64
    tiny, lift, lifted = ((F(2.0**-1022), F(2.0**54), F(54)) if wide else (F(2.0**-126), F(2.0**25), F(25)))
    magic, zero, half, one, two = F(1.5 * 2**52 if wide else 1.5 * 2**23), F(0), F(0.5), F(1), F(2)
    ln2, rest = ((F(6.93147180369123816490e-01), F(1.90821492927058770002e-10)) if wide
                 else (F(0.693359375), F(-2.1219444005469059e-4)))
    infinity, nothing = F(np.inf), F(np.nan)
    q = _polynomial(F, *(
        (0.66666666666667350272, 0.39999999999410244154, 0.2857142874345212454, 0.22222198456588756224,
         0.18183570737954561675, 0.15313878091214744642, 0.14797754901006238796) if wide else
        (0.66666665639583505811, 0.40000336594589491248, 0.28537215538715889701, 0.2358398071155872129)))

    @_part
    def log(x):
        inline_here()
        small = x < tiny
        m, t = _parts(_select(small, x * lift, x))
        n = (t - magic) - _select(small, lifted, zero)
        f = m - one
        s = f / (two + f)
        z, h = s * s, half * (f * f)
        value = n * ln2 - ((h - (s * (h + z * q(z)) + n * rest)) - f)
        value = _select(x < infinity, value, x)
        return _select(x > zero, value, _select(x == zero, -infinity, nothing))

    return log


def _tanh_for(F):
    most, turn, one, two = F(20), F(0.625), F(1), F(2)
    q = _polynomial(F, *(
        (-0.33333333333333313827, 0.13333333333329892937, -0.053968253966135925204, 0.021869488470683906918,
         -0.0088632343418083503964, 0.0035921142728724602068, -0.001455727619093202886, 0.00058945860409788264025,
         -0.00023703000420965010251, 0.000091589497059424339693, -0.000030217574583187460352,
         6.0554295206152510257e-6) if F is np.float64 else
        (-0.33333330909976136806, 0.13333209911040314734, -0.053947222280253768771, 0.021703056990224944156,
         -0.0081828698441662517297, 0.0021476919215910544117)))
    exp = _exp_for(F)

    @_part
    def tanh(x):
        inline_here()
        a = abs(x)
        a = _select(a > most, most, a)
        z = a * a
        near, far = a + (a * z) * q(z), one - two / (exp(two * a) + one)
        return _with_sign(_select(a < turn, near, far), x)

    return tanh


def _sigmoid_for(F):
    zero, one = F(0), F(1)
    exp = _exp_for(F)

    @_part
    def sigmoid(x):
        inline_here()
        e = exp(-abs(x))
        d = one + e
        lost = e - (d - one)
        y = _select(x < zero, e, one) / d
        return y - (y * lost) / d

    return sigmoid


def _angle_for(F):
    """Quadrant and rest of an angle: x = n pi/2 + r + s with s the part that r has no room for."""
    magic, per_turn = F(1.5 * 2**52 if F is np.float64 else 1.5 * 2**23), F(2 / math.pi)
    # pi/2 in parts so short that n times each of them, the last one apart, is exact
    parts = (("0x1.921fb54400000p+0", "0x1.0b4611a600000p-34", "0x1.3198a2e000000p-69", "0x1.b839a252049c1p-104")
             if F is np.float64 else
             ("0x1.92p+0", "0x1.fb8p-12", "-0x1.5ep-23", "0x1.0b8p-34", "-0x1.cf72cep-45"))
    p1, p2, p3, p4, p5 = map(F, [*map(float.fromhex, parts), 0.0][:5])

    @_part
    def narrow(x):
        inline_here()
        t = x * per_turn + magic
        n = t - magic
        b = (x - n * p1) - n * p2
        r = b - n * p3
        s = (((b - r) - n * p3) - n * p4) - n * p5
        return t, r, s

    @_part
    def broad(x):
        inline_here()
        t = x * per_turn + magic
        n = t - magic
        a = x - n * p1
        r = a - n * p2
        s = (((a - r) - n * p2) - n * p3) - n * p4
        return t, r, s

    return broad if F is np.float64 else narrow


def _sine_for(F):
    """sin and cos of r + s with r from -pi/4 to pi/4 and s tiny."""
    wide, half, one = F is np.float64, F(0.5), F(1)
    qs = _polynomial(F, *(
        (-0.16666666666666631814, 0.0083333333333223594474, -0.00019841269829762731452, 2.7557313675740469879e-6,
         -2.5050755508127060893e-8, 1.5896640702262155603e-10) if wide else
        (-0.16666654895128068209, 0.0083321750429516150055, -0.00019516877255223399199)))
    qc = _polynomial(F, *(
        (0.041666666666666599168, -0.0013888888888874070341, 0.000024801587289447227359, -2.7557314341658350032e-7,
         2.0875721737405992689e-9, -1.1359563855876643747e-11) if wide else
        (0.041666646802698056863, -0.0013887364399485488212, 0.000024438087002843466098)))

    @_part
    def both(r, s):
        inline_here()
        z = r * r
        h = half * z
        w = one - h
        sine = r + ((r * z) * qs(z) + s * w)
        cosine = w + (((one - w) - h) + ((z * z) * qc(z) - r * s))
        return sine, cosine

    return both


def _limit(F):
    return F(1.6e6) if F is np.float64 else F(12800)


def _sin_for(F):
    angle, both, limit, nothing = _angle_for(F), _sine_for(F), _limit(F), F(np.nan)

    @_part
    def sin(x):
        inline_here()
        t, r, s = angle(x)
        sine, cosine = both(r, s)
        y = _select(_odd(t), cosine, sine)
        return _select(abs(x) <= limit, _select(_second(t), -y, y), nothing)

    return sin


def _cos_for(F):
    angle, both, limit, nothing = _angle_for(F), _sine_for(F), _limit(F), F(np.nan)

    @_part
    def cos(x):
        inline_here()
        t, r, s = angle(x)
        sine, cosine = both(r, s)
        odd = _odd(t)
        y = _select(odd, sine, cosine)
        return _select(abs(x) <= limit, _select(_second(t) != odd, -y, y), nothing)

    return cos


def _tan_for(F):
    angle, both, limit, nothing = _angle_for(F), _sine_for(F), _limit(F), F(np.nan)

    @_part
    def tan(x):
        inline_here()
        t, r, s = angle(x)
        sine, cosine = both(r, s)
        odd = _odd(t)
        y = _select(odd, -cosine, sine) / _select(odd, sine, cosine)
        return _select(abs(x) <= limit, y, nothing)

    return tan


def _sinh_for(F):
    quarter, one = F(0.25), F(1)
    q = _polynomial(F, *(
        (0.16666666666666666666, 0.0083333333333333335601, 0.00019841269841269590151, 2.7557319224120351747e-6,
         2.505210834561642703e-8, 1.6059050708961816336e-10, 7.6464761648611703833e-13, 2.8484033071035880322e-15)
        if F is np.float64 else
        (0.16666666488472988416, 0.0083333506135522878288, 0.00019836063453164126993, 2.8174547210568129684e-6)))
    half_exp = _exp_for(F, less=1)

    @_part
    def sinh(x):
        inline_here()
        a = abs(x)
        z, e = a * a, half_exp(a)
        return _with_sign(_select(a < one, a + (a * z) * q(z), e - quarter / e), x)

    return sinh


def _cosh_for(F):
    quarter, half_exp = F(0.25), _exp_for(F, less=1)

    @_part
    def cosh(x):
        inline_here()
        e = half_exp(abs(x))
        return e + quarter / e

    return cosh


def _erf_for(F):
    wide, one = F is np.float64, F(1)
    most = F(6) if wide else F(4)
    near = _polynomial(F, *(
        (0.12837916709551257377, -0.37612638903183748178, 0.11283791670954884473, -0.026866170645077875148,
         0.0052239776248284306696, -0.00085483269814255420875, 0.00012055331132955819588, -0.000014925595772180905342,
         1.6461008477802701324e-6, -1.6350396222864616262e-7, 1.4660328722742259544e-8, -1.1374955736070149599e-9,
         5.9606853385209710332e-11) if wide else
        (0.12837916706317835807, -0.37612638483953932652, 0.1128378274888752407, -0.026865445893359985859,
         0.0052210750172173270754, -0.00084847126956686804522, 0.0001127054876279226594, -9.6801370520145686679e-6)))
    far = _polynomial(F, *(  # -log(1 - erf)
        (1.8458600880293906681e-7, 1.128377280351227114, 0.63662871345222368281, 0.10274661398948262119,
         -0.019076896951988900954, -0.00028231629716618543035, 0.0017710256726158343459, -0.00064292305187385394869,
         4.6018871811277306901e-5, 6.9715159089619292401e-5, -4.4754119868162862964e-5, 1.6415844591806265353e-5,
         -4.3001880233382140781e-6, 8.4484200000833349623e-7, -1.2477182751268099238e-7, 1.3514919923504180588e-8,
         -1.0164200347539170699e-9, 4.7483782549071352939e-11, -1.038227473198025339e-12) if wide else
        (-0.00018797793890074905877, 1.1295781296093807247, 0.63322047909600260606, 0.10841794291018598236,
         -0.02520785341480437875, 0.0042044114769585991948, -0.00044130594685668086027, 0.000021684274252191702015)))
    exp = _exp_for(F)

    @_part
    def erf(x):
        inline_here()
        a = abs(x)
        a = _select(a > most, most, a)
        return _with_sign(_select(a < one, a + a * near(a * a), one - exp(-far(a))), x)

    return erf


def _cbrt_for(F):
    zero, third, infinity = F(0), F(1 / 3), F(np.inf)
    exp, log = _exp_for(F), _log_for(F)

    @_part
    def cbrt(x):
        inline_here()
        a = abs(x)
        y = exp(third * log(a))
        y = y - (y - a / (y * y)) * third  # Newton: the digits that the logarithm has lost
        ordinary = (a > zero) & (a < infinity)
        return _with_sign(_select(ordinary, y, a), x)

    return cbrt


def _power_for(F):
    zero, one, infinity = F(0), F(1), F(np.inf)
    exp, log = _exp_for(F), _log_for(F)

    @_part
    def power(x, p):
        inline_here()
        at_zero = _select(p > zero, zero, _select(p < zero, infinity, one))
        return _select(x == zero, at_zero, exp(p * log(x)))

    return power


# -- for compiled code ----------------------------------------------------------------------------------------------


_MAKERS = {exp: _exp_for, log: _log_for, tanh: _tanh_for, sigmoid: _sigmoid_for, sin: _sin_for, cos: _cos_for,
           tan: _tan_for, sinh: _sinh_for, cosh: _cosh_for, erf: _erf_for, cbrt: _cbrt_for, power: _power_for}
_MADE: dict[Any, Any] = {}


def _made(function, F):
    if (function, F) not in _MADE:
        _MADE[function, F] = _MAKERS[function](F)
    return _MADE[function, F]


def _register(function):
    ours = function in (sigmoid, sin, cos, tan, cbrt)  # CUDA's own reduce large angles in float64 and in local memory

    @overload_part(function, cuda=ours and function is not sigmoid, **_OPTIONS)
    def cpu(x):
        if isinstance(x, types.Integer | types.Boolean):
            made = _made(function, np.float64)
            return lambda x: made(np.float64(x))
        if x in (types.float32, types.float64):
            return _made(function, np.float32 if x == types.float32 else np.float64)

    if not ours:
        library = getattr(math, function.__name__)

        @overload(function, target="cuda")
        def cuda(x):
            return lambda x: library(x)


for _function in _MAKERS:
    if _function is not power:
        _register(_function)


@overload_part(sqrt, **_OPTIONS)
def _sqrt(x):
    return lambda x: math.sqrt(x)


@overload(sigmoid, target="cuda")
def _sigmoid_cuda(x):
    one = np.float32(1) if x == types.float32 else np.float64(1)

    def impl(x):
        return one / (one + math.exp(-x))

    return impl


@overload_part(power, cuda=False, **_OPTIONS)
def _power_cpu(x, p):
    if x == p and x in (types.float32, types.float64):
        return _made(power, np.float32 if x == types.float32 else np.float64)


@overload(power, target="cuda")
def _power_cuda(x, p):
    if x == p:
        return lambda x, p: math.pow(x, p)


@overload_part(exp_minus, cuda=False, **_OPTIONS)
def _exp_minus(x, constants):
    if x == types.float64:
        wide = _made(exp, np.float64)
        return lambda x, constants: wide(-x)

    def narrow(x, constants):
        inline_here()
        down, magic, ln2, rest, c0, c1, c2, c3, c4, c5 = constants
        t = x * down + magic
        n = t - magic
        r = (x + n * ln2) + n * rest
        return _scaled(c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * c5)))), t)

    return narrow


__all__ = ["cbrt", "cos", "cosh", "erf", "exp", "exp_minus", "exp_minus_constants",
           "log", "power", "select", "sigmoid", "sin", "sinh", "sqrt", "tan",
           "tanh"]
