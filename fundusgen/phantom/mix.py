"""How often each condition is seen: a public guess, made without any patient of a study."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

# A screening clinic: half healthy, diabetic eyes of all grades, some of everything else.
DEFAULT_MIX: Mapping[str, float] = MappingProxyType(
    {
        "normal": 0.50,
        "dr1": 0.09,
        "dr2": 0.13,
        "dr3": 0.06,
        "dr4": 0.04,
        "amd": 0.06,
        "glaucoma": 0.04,
        "cataract": 0.03,
        "myopia": 0.03,
        "hypertension": 0.02,
    }
)


def mixed_places(conditions: Sequence[str], count: int) -> NDArray[np.int64]:
    """Give conditions in the shares of the default mix, in blocks, rounded to whole numbers.

    Args:
        conditions: Names; those that the mix does not have are left out, unless it has none.
        count: How many to give.

    Returns:
        (count,) int64 places in `conditions`.
    """
    weights = np.array([DEFAULT_MIX.get(name, 0.0) for name in conditions])
    if not weights.any():
        weights = np.ones(len(conditions))
    bounds = np.cumsum(weights)
    places = np.searchsorted(bounds / bounds[-1], (np.arange(count) + 0.5) / count, side="right")
    return places.astype(np.int64)
