"""What happened at a site, in order and in sentences, from the entries of its ledger."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fundusgen.privacy.audit_policy import PolicyPeriod
from fundusgen.privacy.ledger_rows import LedgerRow, Remark
from fundusgen.privacy.ledger_salvage import Salvage
from fundusgen.privacy.reconciliation import COUNTED, RECOVERED


@dataclass(frozen=True, kw_only=True)
class StoryItem:
    """One thing that happened.

    Attributes:
        at: UTC, ISO 8601; as the site's clock said.
        entry: Number of the (first) entry that tells of it.
        kind: `answered`, or the kind of a remark.
        text: A sentence without its full stop.
        epsilon: The total after it, where it cost anything.
    """

    at: str
    entry: int
    kind: str
    text: str
    epsilon: float | None = None


def tell(
    ledger: Salvage, periods: Sequence[PolicyPeriod], total: Callable[[int], float]
) -> tuple[StoryItem, ...]:
    """Tell everything that the entries record; answers in a row become one sentence.

    Args:
        ledger: The ledger.
        periods: Its policies.
        total: Gives epsilon of everything up to an event, by its number.
    """
    changes = {period.sequence: period for period in periods}
    names = {row.study_hash: row.study_id for row in ledger.rows}
    items: list[tuple[int, LedgerRow | Remark]] = [(row.event_id, row) for row in ledger.rows]
    items += [(remark.sequence, remark) for remark in ledger.remarks]
    story: list[StoryItem] = []
    run: list[LedgerRow] = []
    for _, item in sorted(items, key=lambda pair: pair[0]):
        if isinstance(item, Remark):
            story += _answers(run, total)
            run = []
            story.append(_of_remark(item, changes, names))
        elif run and (item.study_hash, item.stage) != (run[-1].study_hash, run[-1].stage):
            story += _answers(run, total)
            run = [item]
        else:
            run.append(item)
    return (*story, *_answers(run, total))


def _answers(run: Sequence[LedgerRow], total: Callable[[int], float]) -> Iterator[StoryItem]:
    if not run:
        return
    first, last = run[0], run[-1]
    study = f"study {first.study_id}"
    if first.stage == COUNTED:
        text = "A repair counted what was forgotten and of which nothing else is known"
    elif first.content_digest.startswith(RECOVERED):
        text = f"A repair counted {_rounds(run)} of {study}, known from receipts"
    else:
        answered = [row for row in run if row.answered]
        reserved = [row for row in run if not row.answered]
        parts = [f"answered {_rounds(answered)}"] if answered else []
        parts += [f"reserved {_rounds(reserved)} and sent nothing for it"] if reserved else []
        text = f"{_capital(', and '.join(parts))}, of {study} (stage {first.stage})"
    yield StoryItem(
        at=first.reserved_at,
        entry=first.event_id,
        kind="answered",
        text=text,
        epsilon=total(last.event_id),
    )


def _rounds(run: Sequence[LedgerRow]) -> str:
    numbers = sorted({row.round_number for row in run})
    if len(numbers) == 1:
        return f"round {numbers[0]}"
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"rounds {numbers[0]} to {numbers[-1]}"
    return f"{len(numbers)} rounds between {numbers[0]} and {numbers[-1]}"


def _of_remark(
    remark: Remark, changes: dict[int, PolicyPeriod], names: dict[str, str]
) -> StoryItem:
    return StoryItem(
        at=remark.written_at,
        entry=remark.sequence,
        kind=remark.kind,
        text=_text(remark, changes, names),
    )


def _text(remark: Remark, changes: dict[int, PolicyPeriod], names: dict[str, str]) -> str:
    note = remark.note
    by = note.get("by", "somebody")
    if remark.kind == "policy":
        period = changes.get(remark.sequence)
        return "The policy: " + (
            "; ".join(period.changes) if period and period.changes else "as before"
        )
    if remark.kind == "approved" and "code" in note:
        return f"{by} approved code {str(note['code'])[:12]} (fundusgen {note.get('version', '?')})"
    if remark.kind == "approved":
        cost, cap = note.get("epsilon_after_study"), note.get("max_epsilon")
        told = ""
        if isinstance(cost, int | float) and isinstance(cap, int | float):
            told = f", told that epsilon would come to {cost:.2f} of {cap:g}"
        return f"{by} approved study {remark.study_id}{told}"
    if remark.kind == "refused":
        said = f". {note['said']}" if note.get("said") else ""
        asked = f"round {note.get('round', '?')}"
        if remark.study_hash:
            asked += f" of study {names.get(remark.study_hash, remark.study_hash[:12])}"
        return f"Refused {asked}: {note.get('reason', 'no reason')}{said}".rstrip(".")
    if remark.kind == "replayed":
        return (
            f"Round {note.get('round', '?')} of study {remark.study_id} was asked for again, and "
            "answered with the same bytes at no cost"
        )
    return f"{by} repaired the ledger: {note.get('reason', 'no reason given')}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
