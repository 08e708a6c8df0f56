"""Step sizes that follow the error: one loop for every method that estimates it after each step.

The estimate of a step of length h is kept below rtol h / t_end, relative to the field, so that the errors of all steps
add up to rtol at most, as far as the equation does not amplify them; rounding, ROUNDING eps a step, is let pass.
 h changes by 0.8 (allowed/estimate)^(1/p), p the
order of the method: per unit of time the estimate is of that order.
"""

import numpy as np

from fastdiff import dispatch
from fastdiff.steppers._base import SAFETY, relative

LEAST, MOST = 0.2, 4.0  # factors of the step from one to the next
TRIES = 60
ROUNDING = 8
AT_ONCE = 8  # steps of one length between looks at the error, once it has settled


class Stuck(ValueError):
    """No step is small enough. It knows the last field that was accepted, and its time."""

    def __init__(self, text, field, t):
        super().__init__(text)
        self.field, self.t = field, t


class Controller:
    """Marches a run from time to time, remembering the step that fits. `steps`, `rejected`, `evaluations` count."""

    def __init__(self, run, span: float, rtol: float):
        self.run, self.span, self.rtol = run, span, rtol
        self.most = SAFETY * run.limit if run.limit < np.inf else np.inf
        self.h = min(run.euler_limit if run.euler_limit < np.inf else span / 100, self.most, span)
        self.steps = self.rejected = self.evaluations = 0
        self.error, self.growing = 0.0, True

    def advance(self, state, t, end, watch):
        """March a state to `end`; `watch(field, t, h, steps)` sees what was accepted. Returns a new state."""
        spare = dispatch.empty_like(state)
        tries, done = 0, False
        while not done:
            h, count, done = self._fitted(end - t)
            new = self.run.advance(state, t, h, count, out=spare, watched=True)
            self.evaluations += count * self.run.scheme(h, True).stages
            error = relative(self.run.estimate(new), self.run.newest(new)) * (1 if self.run.sums else count)
            allowed = max(self.rtol * count * h / self.span, ROUNDING * count * np.finfo(self.run.dtype).eps)
            self._learn(h, error / allowed)
            if error <= allowed:
                state, spare, t, tries = new, state, end if done else t + count * h, 0
                self.steps, self.error = self.steps + count, self.error + error
                watch(self.run.newest(state), t, h, count)
                continue
            self.rejected, tries, done = self.rejected + count, tries + 1, False
            if tries > TRIES or h < 1e-12 * self.span:
                watch(self.run.newest(new), t + h, h, 0)
                raise Stuck(f"{self.run.method.name} does not meet rtol = {self.rtol:g} at t = {t:g} with steps down "
                            f"to {h:g}: try a larger rtol, or float64", self.run.newest(state), t)
        return state

    def _fitted(self, left):
        """The step, made a whole part of what is left; how many of them at once; and whether that is all."""
        whole = max(1, int(np.ceil(left / min(self.h, self.most) * (1 - 1e-9))))
        count = min(whole, 1 if self.growing else AT_ONCE)
        return left / whole, count, count == whole

    def _learn(self, h, ratio):
        factor = 0.8 * max(ratio, 1e-10) ** (-1 / self.run.method.order) if np.isfinite(ratio) else LEAST
        grown = h * min(MOST, max(LEAST, factor))
        self.growing = ratio > 1 or grown > 1.5 * self.h
        self.h = grown if ratio > 1 or h >= 0.5 * self.h else max(grown, self.h)
