"""The condition that generation is conditioned on, from the labels of a row.

A study lists the conditions it uses; this module says which one a row of a manifest has.
"""

from typing import get_args

from fundusgen.data.manifest import ImageRow
from fundusgen.study import Condition

# The study's vocabulary, said once.
CONDITIONS: tuple[str, ...] = get_args(Condition)


def condition_of(row: ImageRow) -> str:
    """Name the condition of an image; the first rule that fits decides.

    1. A diagnosis other than `normal`, `dr` and `unknown` is the condition, whatever the grade:
       an eye with glaucoma and mild retinopathy counts as `glaucoma`.
    2. A retinopathy grade of 1 to 4 gives `dr1` to `dr4`. A grade contradicting a diagnosis of
       `normal` wins: graders look closer than the person who wrote the diagnosis.
    3. Grade 0, or the diagnosis `normal`, gives `normal`. Grade 0 wins over the diagnosis `dr`,
       for the same reason.
    4. The diagnosis `dr` without a grade gives `other`: it is ill, and no stage can be claimed.
    5. Everything else is `unknown`.

    Args:
        row: A row of a manifest, already checked.

    Returns:
        One of `CONDITIONS`.
    """
    if row.diagnosis not in ("normal", "dr", "unknown", ""):
        return row.diagnosis
    if row.dr_grade:
        return f"dr{row.dr_grade}"
    if row.dr_grade == 0 or row.diagnosis == "normal":
        return "normal"
    return "other" if row.diagnosis == "dr" else "unknown"
