"""What a check of an audit says, and when it does not hold."""

from dataclasses import dataclass

import numpy as np

# Probability of each false alarm: an audit makes some forty tests, so 4 in 10,000 sound ones err.
ALARM = 1e-5


@dataclass(frozen=True)
class Check:
    """One property of a mechanism, and whether it was seen to hold.

    Attributes:
        code: Its name, for programs.
        claim: What should hold.
        found: What was seen, with its figure.
        p_value: Probability of what was seen, or worse, if the claim holds; not a number where
            nothing could be seen.
    """

    code: str
    claim: str
    found: str
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether something was seen, and is no reason for alarm."""
        # NaN, of a release that is not finite too, fails the comparison and the check.
        return self.p_value >= ALARM


def two_sided(below: float, above: float) -> float:
    """The p-value of the smaller of two tails."""
    return of_several(float(np.minimum(below, above)), 2)


def of_several(p_value: float, tests: int) -> float:
    """The p-value of the least of several; not a number where that is none."""
    return float(np.minimum(1.0, tests * p_value))
