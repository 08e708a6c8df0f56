"""Step sizes that follow the error: for methods that estimate it after each step, and for those that do not.

The estimate of a step of length h is kept below rtol h / t_end, relative to the field, so that the errors of all steps
add up to rtol at most, as far as the equation does not amplify them; rounding, ROUNDING eps a step, is let pass. h
changes by 0.8 (allowed/estimate)^(1/p), p the order of the method: per unit of time the estimate is of that order.

Where a formula jumps in time, as where a heater is switched on, no step is short enough for that. One that is SHRUNK
times shorter than others were may take up to JUMP rtol for itself, out of a reserve of RESERVE rtol for the whole run.

Methods without an estimate solve again with more steps: see `Richardson`.
"""

from math import ceil, sqrt

import numpy as np

from fastdiff import dispatch
from fastdiff.kernels._memory import empty_like
from fastdiff.steppers._base import SAFETY, relative
from fastdiff.watch import Sink

LEAST, MOST = 0.2, 4.0  # factors of the step from one to the next
TRIES = 60
LEAST_STEP = 1e-12  # of the whole time
ROUNDING = 8
SHRUNK, JUMP, RESERVE = 1e-3, 1e-3, 0.1
AT_ONCE = 8  # steps of one length between looks at the error, once it has settled


class Stuck(ValueError):
    """No step is small enough. It knows the last accepted field and its time, and what led there.

    error       that of the last step, as estimated
    approached  whether steps were accepted that became shorter and shorter, as towards a blow-up
    """

    def __init__(self, text, field, t, error, approached):
        super().__init__(text)
        self.field, self.t, self.error, self.approached = field, t, error, approached


class Controller:
    """Marches a run from time to time, remembering the step that fits. `steps`, `rejected`, `evaluations` count."""

    def __init__(self, run, span: float, rtol: float):
        self.run, self.span, self.rtol = run, span, rtol
        self.most = SAFETY * run.limit if run.limit < np.inf else np.inf
        self.h = min(run.euler_limit if run.euler_limit < np.inf else span / 100, self.most, span)
        self.steps = self.rejected = self.evaluations = 0
        self.error, self.growing, self.reserve = 0.0, True, RESERVE * rtol
        self.longest = self.last = self.h
        self._spare = self._work = None
        self.at_once = AT_ONCE if run.sums or not run.timed(self.h) else 1  # a jump in any step must be seen

    def advance(self, state, t, end, watch):
        """March a state to `end`; `watch(field, t, h, steps)` sees what was accepted. Returns a new state."""
        spare, work = self._buffers(state)
        tries, done = 0, False
        while not done:
            h, count, done = self._fitted(end - t)
            new = self.run.advance(state, t, h, count, out=spare, work=work, watched=True)
            self.evaluations += count * self.run.stages(h, True)
            error = relative(self.run.estimate(new), self.run.newest(new)) * (1 if self.run.sums else count)
            allowed = max(self.rtol * count * h / self.span, ROUNDING * count * np.finfo(self.run.dtype).eps)
            self._learn(h, error / allowed)
            jumps = h <= SHRUNK * self.longest and allowed < error <= min(JUMP * self.rtol, self.reserve)
            if jumps:
                self.reserve, self.h = self.reserve - error, h
            if jumps or error <= allowed:
                state, spare, t, tries = new, state, end if done else t + count * h, 0
                self.longest, self.last = max(h, self.longest), h
                self.steps, self.error = self.steps + count, self.error + error
                watch(self.run.newest(state), t, h, count)
                if not (done or jumps) and self.h < LEAST_STEP * self.span:  # a blow-up is approached for ever
                    raise self._stuck(t, h, state, state, approached=True)
                continue
            self.rejected, tries, done = self.rejected + count, tries + 1, False
            if tries > TRIES or h < LEAST_STEP * self.span:
                watch(self.run.newest(new), t + h, h, 0)
                unspent = self.reserve > RESERVE * self.rtol / 2  # it was not jumps that made steps short
                raise self._stuck(t, h, state, new, unspent and self.last < SHRUNK**2 * self.longest)
        self._spare = spare
        return state

    def _stuck(self, t, h, state, new, approached):
        return Stuck(f"{self.run.method.name} does not meet rtol = {self.rtol:g} at t = {t:g} with steps down to "
                     f"{h:g}: try a larger rtol, {'float64, ' if self.run.dtype == np.float32 else ''}or fixed steps "
                     "by dt; a formula jumps there, or the field blows up", self.run.newest(state), t,
                     self.run.estimate(new), approached)

    def _buffers(self, state):
        """Two more arrays like a state, kept from call to call: new memory costs as much as some steps."""
        if self._spare is None or self._spare is state:
            self._spare = dispatch.empty_like(state)
        if self._work is None:
            self._work = dispatch.empty_like(state)
        return self._spare, self._work

    def _fitted(self, left):
        """The step, made a whole part of what is left; how many of them at once; and whether that is all."""
        whole = max(1, int(np.ceil(left / min(self.h, self.most) * (1 - 1e-9))))
        count = min(whole, 1 if self.growing else self.at_once)
        return left / whole, count, count == whole

    def _learn(self, h, ratio):
        factor = 0.8 * max(ratio, 1e-10) ** (-1 / self.run.method.order) if np.isfinite(ratio) else LEAST
        grown = h * min(MOST, max(LEAST, factor))
        self.growing = ratio > 1 or grown > 1.5 * self.h
        self.h = grown if ratio > 1 or h >= 0.5 * self.h else max(grown, self.h)


class Richardson:
    """Solutions with more and more steps, and what they say about the error.

    Two of them give a third, in which the leading error cancels: F + (F - G) / (r^p - 1), with r times as many steps in
    F as in G and p the method's order. Two of these third ones differ by the error of the worse.
    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., Springer 1993, section II.9.

    order   p
    number  of frames in a solution
    make    gives room for the frames of one, an array or a `watch.Sink`
    """

    def __init__(self, order: int, number: int, make):
        self.order, self.number, self.make = order, number, make
        self.power = 2.0 if order == 2 else (order + 1) / 2  # methods of second order here have even powers alone
        self.counts: list[int] = []
        self.count, self.last, self.better = 0, None, None
        self.error = self.before = np.inf

    def add(self, count: int, frames):
        """Take the solution with `count` times the first one's steps; returns the best there is, and what is spent."""
        spent = [self.last, self.better]
        self.counts.append(count)
        if self.last is None:
            self.count, self.last = count, frames
            return frames, []
        weight, best, self.before = 1 / ((count / self.count) ** self.order - 1), self.make(), self.error
        for n in range(self.number):
            fine, coarse = frames[:, n], self.last[:, n]
            new = _less(fine, coarse)
            new *= float(weight)
            new += fine
            if isinstance(best, Sink):
                best.put_closed(n, new)
            else:
                best[:, n] = new
        self.error = weight * self._distance(frames, self.last)
        if self.better is not None:
            self.error = min(self.error, self._distance(best, self.better))
        self.count, self.last, self.better = count, frames, best
        return best, spent

    def next(self, rtol: float) -> int:
        """How many times the first solution's steps to try next.

        What is extrapolated from k and l times has an error of about C / (k l)^q, and it takes a third solution to
        see it.
        """
        if len(self.counts) < 3:
            return self.count + max(1, self.count // 2)
        before, k, count = self.counts[-3:]
        seen = before * k  # the error is that of these two
        wanted = seen * (1.15 * self.error / rtol) ** (1 / self.power)
        if k * count >= wanted:
            return ceil(1.3 * count)
        more = wanted / count if 1.4 * count**2 >= wanted else sqrt(wanted / 1.4)
        return ceil(min(max(more, 1.2 * count), 8 * count))

    def _distance(self, a, b):
        return max(relative(_less(a[:, n], b[:, n]), a[:, n]) for n in range(self.number))


def _less(a, b):
    """a - b, of arrays in memory that was used before."""
    return np.subtract(a, b, out=empty_like(a)) if isinstance(a, np.ndarray) else a - b
