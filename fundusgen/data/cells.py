"""The cells of a manifest: what each known column may hold.

Each function takes the text of one cell, already stripped, and returns its value, or raises
`CellError` with what was expected. Empty always means unknown.
"""

import difflib
from collections.abc import Sequence

DIAGNOSES = (
    "normal",
    "dr",
    "amd",
    "glaucoma",
    "cataract",
    "myopia",
    "hypertension",
    "other",
    "unknown",
)
EYES = ("L", "R")
SEXES = ("F", "M")
MAX_AGE_YEARS = 130


class CellError(Exception):
    """A cell that does not hold what its column may hold; never leaves this package."""

    def __init__(self, expected: str, remedy: str) -> None:
        """Keep what was expected and what to do about it."""
        super().__init__(expected)
        self.expected = expected
        self.remedy = remedy


def whole_number(text: str, highest: int, meaning: str) -> int | None:
    """Read a whole number from 0 to `highest`; `2.0` counts, as tables with gaps are saved so.

    Raises:
        CellError: If it is no number, not whole, or outside the range.
    """
    if not text:
        return None
    expected = f"a whole number from 0 to {highest} ({meaning}), or an empty cell for unknown"
    digits = text.removesuffix(".0")
    # str.isdigit alone would let in superscripts, and int() underscores and signs.
    if not (digits.isascii() and digits.isdigit()) or int(digits[:9]) > highest or len(digits) > 9:
        raise CellError(expected, "Correct the cell or leave it empty")
    return int(digits)


def one_of(text: str, choices: Sequence[str]) -> str:
    """Read one of a few words, in capitals or not; empty stays empty.

    Raises:
        CellError: If it is none of them, with the nearest in the remedy.
    """
    by_lower_case = {choice.lower(): choice for choice in choices}
    if not text:
        return ""
    if text.lower() in by_lower_case:
        return by_lower_case[text.lower()]
    near = difflib.get_close_matches(text.lower(), list(by_lower_case), n=1)
    remedy = f"Did you mean {by_lower_case[near[0]]!r}?" if near else "Correct the cell"
    raise CellError(f"one of {', '.join(choices)}, or an empty cell for unknown", remedy)
