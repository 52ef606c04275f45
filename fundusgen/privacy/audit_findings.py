"""What an audit can find, and what each finding means, in words for a privacy officer."""

from dataclasses import dataclass
from typing import Literal, get_args

Area = Literal["chain", "end", "signatures", "receipts", "policy", "outbox", "accountants"]

# What is checked, as a sentence that holds or not.
AREA_CLAIMS: dict[Area, str] = {
    "chain": "Every entry of the ledger is as it was written, in one unbroken chain.",
    "end": "Nothing is missing at the end of the ledger.",
    "signatures": "Every receipt is signed by the site, follows the one before it, and states the "
    "epsilon that its own history costs.",
    "receipts": "Ledger and receipts tell the same: no release without an entry, no entry of a "
    "release without its receipt.",
    "policy": "Every event was allowed by the policy of its time, and within its cap.",
    "outbox": "The outbox holds no reply that the ledger does not know.",
    "accountants": "PRV and Google's PLD agree on the total.",
}

# Code of a finding: area, whether it must not be, and what it means.
_MEANINGS: dict[str, tuple[Area, bool, str]] = {
    "ledger-lost": (
        "chain", True,
        "What this site has spent can no longer be read here. Receipts of the servers show at "
        "least what was sent.",
    ),
    "not-a-ledger": (
        "chain", True,
        "This is not the file that fundusgen writes, or its mark was changed.",
    ),
    "newer-version": (
        "chain", True,
        "This fundusgen is too old to judge the ledger. Audit it with a newer one.",
    ),
    "tables-changed": (
        "chain", True,
        "Somebody has changed the database itself. The triggers keep entries from being changed "
        "by mishap; without them nothing kept anybody from it.",
    ),
    "database-damaged": (
        "chain", True,
        "Part of the file cannot be read: a failing disk, a copy made while it was written, or "
        "an edit of its bytes. What can still be read is counted; the rest may be missing from "
        "the total.",
    ),
    "no-identity": (
        "chain", True,
        "It cannot be shown that the entries belong to this ledger and not to another.",
    ),
    "head-missing": (
        "end", True,
        "If entries were cut off at the end, or an older copy was put in place, the ledger alone "
        "does not show it. For a copy, copy ledger.db.head as well.",
    ),
    "head-damaged": (
        "end", True,
        "If entries were cut off at the end, the ledger alone does not show it.",
    ),
    "head-differs": (
        "end", True,
        "The end of the ledger was written anew, by something else than fundusgen. Any entry "
        "before it may have been changed with it; only receipts show what was there.",
    ),
    "entries-lost": (
        "end", True,
        "Entries at the end were deleted, or an older copy of the ledger was put back. Whatever "
        "they counted is missing from the total shown here. (Or ledger.db was copied without "
        "ledger.db-wal, which holds the last entries while a client works or after it was killed.)",
    ),
    "entries-missing": (
        "chain", True,
        "Entries were deleted. What they counted may be missing from the total, unless other "
        "entries of the same event or receipts still tell it.",
    ),
    "entry-repeated": (
        "chain", True,
        "Somebody has added an entry by hand.",
    ),
    "entry-illegible": (
        "chain", True,
        "What this entry counted may be missing from the total.",
    ),
    "entry-changed": (
        "chain", True,
        "Somebody has edited the ledger after it was written. Where the chain still proves what "
        "stood there, the total is counted with that; else with the dearest of what the event's "
        "entries say.",
    ),
    "link-broken": (
        "chain", True,
        "Entries of another ledger, or entries written anew, stand here.",
    ),
    "state-impossible": (
        "chain", True,
        "The client never writes such a sequence. It is counted as the dearer of the two.",
    ),
    "never-answered": (
        "receipts", False,
        "The client was cut short while it trained, or the round was not asked for again. "
        "Nothing left the site, and the whole event is counted all the same: the total is higher "
        "than the truth, never lower.",
    ),
    "never-released": (
        "receipts", False,
        "The client was cut short just before it answered. Nothing left the site so far; if the "
        "round is asked for again, this answer is what will be sent. It is counted.",
    ),
    "clock-set-back": (
        "chain", False,
        "The machine's clock was changed. Times here are for people only: the order and the "
        "total come from the numbers.",
    ),
    "receipt-unreadable": (
        "signatures", True,
        "A file among the receipts is damaged or is none. What it stated cannot be checked.",
    ),
    "receipt-repeated": (
        "signatures", True,
        "The site has signed two different statements with one number. Its ledger was put back "
        "to an older copy and gone on with, or its key is used elsewhere.",
    ),
    "no-key": (
        "signatures", True,
        "Anybody could have written these receipts. Give the site's node.pub with --key.",
    ),
    "signature-wrong": (
        "signatures", True,
        "The receipt was changed after it was signed, or was signed by somebody else. It proves "
        "nothing, and is left out of the comparison. If the site has changed its key since, give "
        "the earlier node.pub with --key as well.",
    ),
    "epsilon-wrong": (
        "signatures", True,
        "What the server was told about the budget is not what the events cost.",
    ),
    "receipts-break": (
        "signatures", True,
        "Between these two receipts the ledger has forgotten something, or there were two of it.",
    ),
    "release-not-in-ledger": (
        "receipts", True,
        "The server holds a signed answer, so it was sent. The ledger has lost the entries that "
        "said so.",
    ),
    "release-deleted": (
        "receipts", True,
        "The site has signed and sent an answer whose entries are gone from the ledger, while "
        "later ones are there: they were taken out. The total shown here lacks it.",
    ),
    "release-unknown": (
        "receipts", True,
        "The site has signed and sent answers that this ledger does not know: an older copy of "
        "it was put back, or entries were cut off at the end. The total shown here lacks them. "
        "(Or the copy that was audited is older than the receipts: then copy it again.)",
    ),
    "receipt-contradicts": (
        "receipts", True,
        "Ledger and receipt describe the same answer differently. The receipt is signed; the "
        "ledger was changed.",
    ),
    "receipt-counts-more": (
        "receipts", True,
        "When this receipt was signed, the ledger counted events that it no longer holds. The "
        "total shown here lacks them.",
    ),
    "receipt-counts-less": (
        "receipts", True,
        "The ledger now holds events from before this receipt that it did not count then. The "
        "server was told too little, or entries were added later.",
    ),
    "receipt-missing": (
        "receipts", True,
        "The ledger says that this answer was sent, and it is counted. But the receipts that were "
        "given lack it: the reply was lost or came too late, the receipt was deleted since, or "
        "the copy of the receipts is older. The ledger's entry is then the only witness.",
    ),
    "receipt-not-kept": (
        "receipts", False,
        "The receipts that were given lack it, and the site's outbox has it, signed: the reply was "
        "lost or came too late, or the server's copy was deleted since.",
    ),
    "receipts-not-given": (
        "receipts", False,
        "These answers went to a server whose receipts were not given. They are counted, but "
        "nobody but the ledger confirms them.",
    ),
    "reply-unknown": (
        "outbox", True,
        "A reply was made of which the ledger knows nothing: the ledger is an older copy, or "
        "entries were deleted. Whether it was sent cannot be told.",
    ),
    "reply-contradicts": (
        "outbox", True,
        "The outbox keeps an answer with the bytes that the ledger names, and the receipt in it is "
        "another one: the ledger was changed.",
    ),
    "reply-missing": (
        "outbox", False,
        "If this round is asked for again, the site cannot answer. It does not train it twice.",
    ),
    "policy-unknown": (
        "policy", True,
        "It cannot be shown that anything allowed this event.",
    ),
    "policy-unreadable": (
        "policy", True,
        "What this policy allowed cannot be checked with this version of fundusgen.",
    ),
    "policy-altered": (
        "policy", True,
        "Somebody has edited the text of the policy in the ledger. Events and receipts name it by "
        "its hash, so what it really allowed is not known from here.",
    ),
    "policy-not-current": (
        "policy", True,
        "The client notes a policy before it answers under it. Either the entry was changed, or "
        "another program than fundusgen has answered under a policy that held no more.",
    ),
    "repair-unknown": (
        "policy", True,
        "Events that a repair adds are not held against a policy. This one pretends to be one.",
    ),
    "policy-not-held": (
        "policy", True,
        "The client answers nothing that its policy does not allow. Either the entry was "
        "changed, or another program than fundusgen has answered.",
    ),
    "over-cap": (
        "policy", True,
        "Patients of this site have been exposed to more than the policy of that time allowed.",
    ),
    "spent-above-cap": (
        "policy", False,
        "The cap was lowered below what was spent before. Nothing is answered any more; what "
        "was sent before cannot be taken back.",
    ),
    "policy-changed-since": (
        "policy", False,
        "The policy file was changed after the last request. The ledger takes note of it when "
        "the next request comes.",
    ),
    "no-approval": (
        "policy", False,
        "The study is in the policy's list, so somebody with access to policy.yaml let it in. "
        "The ledger does not say who: it was not done with `fundusgen site approve`.",
    ),
    "code-not-approved-by-name": (
        "policy", False,
        "The code is in the policy's list from the start, or was added by hand. The ledger does "
        "not say who approved it.",
    ),
    "delta-large": (
        "policy", False,
        "With such a delta the guarantee would allow that some patient's images are published "
        "whole. Delta should be well below one over the number of patients.",
    ),
    "any-code": (
        "policy", False,
        "Whatever code was installed could have answered. For real hospitals the policy should "
        "list the hashes of code that was reviewed.",
    ),
    "fast-noise": (
        "policy", False,
        "The noise came from a generator that is not cryptographic. This is for simulations.",
    ),
    "data-changed": (
        "policy", False,
        "The images or the manifest changed between two rounds. The guarantee holds for each "
        "state of the data; a patient is counted with all rounds in which they were there.",
    ),
    "repaired": (
        "chain", False,
        "A person has repaired this ledger. What came before rests on what the repair could "
        "find; the old ledger is kept beside it.",
    ),
    "accountants-differ": (
        "accountants", True,
        "One of the programs that compute epsilon is wrong for this history. Take the largest "
        "of the numbers, and report it.",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        code: What kind of thing; stable, for programs.
        area: Which claim it is about.
        fault: Whether it must not be; else it is for information.
        found: What was found, as a sentence without its full stop.
        expected: What should be there.
        meaning: What it means, in plain words.
        entry: The ledger's entry that it is about, or None.
        receipt: The number of the receipt that it is about, or None.
        at: When the entry was written, UTC, ISO 8601; empty where that is unknown.
    """

    code: str
    area: Area
    fault: bool
    found: str
    expected: str
    meaning: str
    entry: int | None = None
    receipt: int | None = None
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One claim, and whether it holds.

    Attributes:
        area: Which.
        faults: How many findings speak against it.
        not_checked: Why it was not checked; empty if it was.
    """

    area: Area
    faults: int
    not_checked: str = ""

    @property
    def claim(self) -> str:
        """The claim as a sentence."""
        return AREA_CLAIMS[self.area]

    @property
    def holds(self) -> bool:
        """Whether it was checked and nothing speaks against it."""
        return not self.faults and not self.not_checked


def finding(
    code: str,
    found: str,
    expected: str,
    *,
    entry: int | None = None,
    receipt: int | None = None,
    at: str = "",
) -> Finding:
    """Make a finding of a known kind.

    Raises:
        KeyError: The kind is unknown.
    """
    area, fault, meaning = _MEANINGS[code]
    return Finding(
        code=code, area=area, fault=fault, found=found, expected=expected, meaning=meaning,
        entry=entry, receipt=receipt, at=at,
    )  # fmt: skip


def known_codes() -> frozenset[str]:
    """All kinds of findings."""
    return frozenset(_MEANINGS)


assert set(AREA_CLAIMS) == set(get_args(Area))  # noqa: S101 - our own table, not input
