"""What figures of `usefulness` depend on, besides the images and the classifiers."""

from dataclasses import dataclass

from fundusgen.evaluation.diagnosis_scores import LEAST_PATIENTS_OF_A_CLASS
from fundusgen.evaluation.resampling import REPLICATES


@dataclass(frozen=True)
class UsefulnessSettings:
    """Who learns, from how much, and on how many it is tested.

    Attributes:
        seeds: Classifiers learn once with each; a seed also chooses who is in a share.
        shares: Of the real training patients, along the curve; above 0, and 1 is always among
            them.
        synthetic_weight: What all generated images of a class weigh in training, against all
            photographs of it; 1: as much. Fixed rather than chosen, so that a generator which
            misleads is seen to. Where a condition is topped up, every image weighs the same.
        least_patients: Of either class, to test on and to learn from, for a task to be given:
            the standard error of an AUC of 0.8 is then 0.06 at best (Hanley and McNeil 1982).
        least_patients_of_a_grade: The same of each grade; fewer, since a score is of all five.
        resampling_seed: Of the intervals.
        replicates: Of the bootstrap.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    synthetic_weight: float = 1.0
    least_patients: int = 20
    least_patients_of_a_grade: int = 5
    resampling_seed: int = 0
    replicates: int = REPLICATES

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: There is no seed, a share is not in (0, 1], or a weight is not above 0.
        """
        if not self.seeds or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"seeds {self.seeds}, shares {self.shares}: some, of 0 to 1")
        fewest = min(self.least_patients, self.least_patients_of_a_grade)
        if not self.synthetic_weight > 0 or fewest < LEAST_PATIENTS_OF_A_CLASS:
            raise ValueError(
                f"weight {self.synthetic_weight}, at least {fewest} patients: a weight above 0 and "
                f"{LEAST_PATIENTS_OF_A_CLASS} patients or more are needed"
            )
