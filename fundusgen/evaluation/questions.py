"""The questions of an evaluation; apart from their answers, which need more packages."""

from enum import StrEnum


class Question(StrEnum):
    """What an evaluation can be asked."""

    REALISM = "realism"
    DIVERSITY = "diversity"
    ANATOMY = "anatomy"
    USEFULNESS = "usefulness"
    LEAKAGE = "leakage"
