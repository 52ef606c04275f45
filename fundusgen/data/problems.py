"""What is wrong with a row of a manifest or its image, and what becomes of that row.

The first thing after the manifest and the images have been read. A problem says the row, what
was found, what was expected and what to do. The list may name files and patients, so it stays
at the site: it is shown to the operator and kept beside the cache, and never sent.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fundusgen.errors import ManifestError
from fundusgen.storage import write_atomically

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class RowProblem:
    """Something wrong with one row of a manifest, for which it is usually left out.

    Attributes:
        line: Line of the manifest, counted from 1, the header included.
        column: Known column that the problem is in; `file` for the image itself.
        found: What was found, without a full stop.
        expected: What was expected instead.
        remedy: What to do, in the imperative.
        left_out: Whether the row is left out; if not, it is used and the problem is a warning.
    """

    line: int
    column: str
    found: str
    expected: str
    remedy: str
    left_out: bool = True

    def __str__(self) -> str:
        """The problem on one line."""
        return (
            f"line {self.line}, {self.column}: {self.found}. "
            f"Expected: {self.expected}. {self.remedy}."
        )


def left_out_count(problems: Iterable[RowProblem]) -> int:
    """Count the problems whose rows are left out; warnings do not count."""
    return sum(problem.left_out for problem in problems)


def refuse(problems: Sequence[RowProblem], manifest: str = "the manifest") -> None:
    """Stop at the problems that were found, warnings included; do nothing if there are none.

    Raises:
        ManifestError: Listing the first problems and the number of all.
    """
    if not problems:
        return
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"\n  and {more} more" if more > 0 else ""
    rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
    raise ManifestError(
        f"{rows} of {manifest} cannot be used as they are:\n{shown}{rest}\n",
        expected="a usable image and valid labels in every row, as strict reading asks for",
        remedy="Correct these rows, or read without strict",
    )


def write_problems(path: Path, problems: Sequence[RowProblem]) -> None:
    """Keep the list of problems at the site, as JSON that only its owner may read.

    Args:
        path: File to write; replaced at once, never half written.
        problems: In the order in which they are to be listed.
    """
    content = {
        "left_out": left_out_count(problems),
        "problems": [asdict(problem) for problem in problems],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Asked for in every round of a study: what has not changed is not written to the disk again.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text, mode=0o600)
