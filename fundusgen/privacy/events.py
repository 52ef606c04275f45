"""The event of a mechanism: what the ledger records and the accountants compose.

A leaf of the privacy package: nothing here but values. One event is one differentially private
computation at one site, in Opacus' words: `noise_multiplier` is the standard deviation of the
noise over the L2 sensitivity to one patient, `sample_rate` is the probability with which each
patient enters a step (Poisson), `steps` is how many steps were taken.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fundusgen.errors import AccountingError

MechanismKind = Literal["subsampled_gaussian", "gaussian"]

# Below this a step gives a patient away (epsilon above 10^11), and its square nears the end of
# what 64-bit floats can account for.
MIN_NOISE_MULTIPLIER = 1e-6
MAX_STEPS = 10**9


@dataclass(frozen=True, slots=True)
class Event:
    """One mechanism, run `steps` times.

    Guarantee: holds only parameters for which an epsilon exists: finite noise of at least
    `MIN_NOISE_MULTIPLIER`, a sample rate in (0, 1], 0 to `MAX_STEPS` steps. The unit is the
    patient, neighbours differ by one patient added or removed.
    Edge cases: `steps == 0` costs nothing and is allowed, for what a round did before it stopped.
    A plain Gaussian looks at every patient: its sample rate is exactly 1. True and False are not
    numbers.

    Args:
        kind: `subsampled_gaussian` (DP-SGD) or `gaussian` (votes).
        noise_multiplier: Standard deviation of the noise over the sensitivity, > 0.
        sample_rate: Probability of each patient to enter one step, in (0, 1].
        steps: Number of steps, >= 0.

    Raises:
        AccountingError: A value for which no epsilon can be given.
    """

    kind: MechanismKind
    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse at the edge what no accountant could compose."""
        if self.kind not in get_args(MechanismKind):
            raise AccountingError(
                f"the mechanism {self.kind!r} is unknown",
                expected=f"one of {', '.join(get_args(MechanismKind))}",
            )
        _check_real("noise_multiplier", self.noise_multiplier)
        if not MIN_NOISE_MULTIPLIER <= self.noise_multiplier < math.inf:
            raise AccountingError(
                f"noise_multiplier is {self.noise_multiplier}",
                expected=f"a finite number of at least {MIN_NOISE_MULTIPLIER}",
                remedy="Without noise there is no privacy: let the target epsilon set the noise",
            )
        _check_real("sample_rate", self.sample_rate)
        if not 0.0 < self.sample_rate <= 1.0:
            raise AccountingError(
                f"sample_rate is {self.sample_rate}",
                expected="a probability in (0, 1]: expected patients in a step / patients",
            )
        if self.kind == "gaussian" and self.sample_rate != 1.0:
            raise AccountingError(
                f"a plain Gaussian mechanism has sample_rate {self.sample_rate}",
                expected="1.0, since it reads every patient",
                remedy="Use kind 'subsampled_gaussian' where patients are Poisson-sampled",
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise AccountingError(f"steps is {self.steps!r}", expected="a whole number")
        if not 0 <= self.steps <= MAX_STEPS:
            raise AccountingError(f"steps is {self.steps}", expected=f"0 to {MAX_STEPS}")
        # An int given for a float would be another JSON text, so another digest of the same row.
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "sample_rate", float(self.sample_rate))

    def costs_at_most(self, planned: "Event") -> bool:
        """Whether this event is sure to cost no more than `planned`.

        Guarantee: true only if every parameter is as private or more so; epsilon falls with
        noise and rises with sample rate and steps, so no accountant is needed.
        Edge cases: more steps with more noise may be cheaper in truth, and is still false.
        """
        return (
            self.kind == planned.kind
            and self.noise_multiplier >= planned.noise_multiplier
            and self.sample_rate <= planned.sample_rate
            and self.steps <= planned.steps
        )

    def to_json(self) -> dict[str, str | float | int]:
        """Give the event as plain JSON values.

        Guarantee: `Event.from_json(event.to_json()) == event`, to the last bit.
        Edge cases: none; the values are finite.
        """
        return {
            "kind": self.kind,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Event":
        """Read an event from the values that `to_json` gave.

        Guarantee: nothing is guessed: a missing, unknown or ill-typed key is refused.
        Edge cases: `5` is read as the noise multiplier `5.0`; `5.0` is no number of steps.

        Raises:
            AccountingError: Keys or values are not those of an event.
        """
        expected = ("kind", "noise_multiplier", "sample_rate", "steps")
        if not isinstance(values, Mapping) or set(values) != set(expected):
            found = sorted(map(str, values)) if isinstance(values, Mapping) else values
            raise AccountingError(
                f"an event was written as {found!r}", expected=f"the keys {', '.join(expected)}"
            )
        kind, noise_multiplier, sample_rate, steps = (values[key] for key in expected)
        return cls(kind, noise_multiplier, sample_rate, steps)  # type: ignore[arg-type]


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Give the same history in its shortest form, in one order.

    A receipt states a site's whole history in this form, so that whoever reads it can compute
    epsilon again without a line for every round.

    Guarantee: lossless for accounting: events of equal kind, noise and sample rate become one of
    all their steps, and every accountant adds up steps anyway. Two histories of the same
    mechanisms, in whatever order, give equal results; `merged(merged(x)) == merged(x)`.
    Edge cases: events of no steps are dropped. More than `MAX_STEPS` steps of one mechanism
    become several events, the full ones first.

    Args:
        events: In any order.
    """
    steps_of: defaultdict[tuple[MechanismKind, float, float], int] = defaultdict(int)
    for event in events:
        steps_of[event.kind, event.noise_multiplier, event.sample_rate] += event.steps
    return tuple(
        Event(kind, noise_multiplier, sample_rate, min(MAX_STEPS, steps - done))
        for (kind, noise_multiplier, sample_rate), steps in sorted(steps_of.items())
        for done in range(0, steps, MAX_STEPS)
    )


def beyond(events: Iterable[Event], others: Iterable[Event]) -> tuple[Event, ...]:
    """Give what a history holds beyond another, mechanism by mechanism, in its shortest form.

    Guarantee: `others` and the result together hold at least the steps of `events`, for every
    noise and rate. Empty exactly if `others` covers `events`.
    Edge cases: more noise does not stand in for less. No events are beyond nothing.

    Args:
        events: The history that should be covered.
        others: What is there.
    """
    there: defaultdict[tuple[str, float, float], int] = defaultdict(int)
    for event in others:
        there[event.kind, event.noise_multiplier, event.sample_rate] += event.steps
    left = []
    for event in merged(events):
        key = event.kind, event.noise_multiplier, event.sample_rate
        taken = min(event.steps, there[key])
        there[key] -= taken
        left.append(replace(event, steps=event.steps - taken))
    return merged(left)


def _check_real(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise AccountingError(f"{name} is {value!r}", expected="a number")
