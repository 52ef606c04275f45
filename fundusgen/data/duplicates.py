"""The same photograph in two rows: when the later one is left out, and when it only is told.

Used on file names while the manifest is read, and on file contents before framing.

Guarantee: whether a row is used depends on rows of its own patient only. Were an image of one
patient left out because another patient has it too, then adding or removing that other patient
would change what two patients contribute, and the bound for one patient would not hold. So
repeats count once within a patient; across patients every row stays with its patient and the
operator is told: if both are one person, that person is protected as two patients are, and their
epsilons add up.
"""

from collections.abc import Hashable

from fundusgen.data.problems import RowProblem


class Repeats:
    """Images met so far, under whatever names them: their path or a digest of their content.

    Args:
        meaning: What two rows of the same image have in common, between file and line in a
            sentence: `is the same file as`.
    """

    def __init__(self, meaning: str) -> None:
        """Start with no image met."""
        self._meaning = meaning
        self._line_of_patient: dict[tuple[str, Hashable], int] = {}
        self._line: dict[Hashable, int] = {}

    def problem(
        self, image: Hashable, *, line: int, file: str, patient_id: str
    ) -> RowProblem | None:
        """Meet the image of a row; rows come in the order of the manifest.

        Args:
            image: What is equal for equal images and for no others.
            line: The row's line.
            file: The row's file, for messages.
            patient_id: The row's patient.

        Returns:
            A problem that leaves the row out if the same patient has the image already, one
            that keeps the row if only another patient has, or None.
        """
        own = (patient_id, image)
        if own in self._line_of_patient:
            return RowProblem(
                line,
                "file",
                f"{file!r} {self._meaning} line {self._line_of_patient[own]}",
                "each photograph of a patient once",
                "Remove the row that is wrong",
            )
        self._line_of_patient[own] = line
        first = self._line.setdefault(image, line)
        if first == line:
            return None
        return RowProblem(
            line,
            "patient_id",
            f"{file!r} {self._meaning} line {first}, under another patient id",
            "one id for one person",
            "Give both rows the same patient_id or remove one; until then this person counts as "
            "two patients and their epsilons add up",
            left_out=False,
        )
