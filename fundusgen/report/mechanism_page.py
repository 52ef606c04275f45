"""`mechanism.html`: an audit of mechanisms as a page for people. One file, no network, no script.

First whether the claims hold, then for each mechanism a bar a method beside the claim, and what was
checked of noise and sampling. Canaries are no patients: nothing on the page is private.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from fundusgen import __version__
from fundusgen.auditing.audit import CONFIDENCE, SUFFICIENT_POWER, MechanismAudit
from fundusgen.auditing.verdicts import ALARM, Check
from fundusgen.report.html import whole_page
from fundusgen.storage import write_atomically

# The claim's mark stands here, so that a bound above it can be seen to be.
_CLAIM_PERCENT = 70.0


def write_mechanism_page(path: Path, audits: Sequence[MechanismAudit], noise: str) -> None:
    """Write the page, whole or not at all; it needs no other file and no network.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(path, mechanism_page(audits, noise))


def mechanism_page(audits: Sequence[MechanismAudit], noise: str) -> str:
    """Give the page's HTML.

    Args:
        audits: At least one.
        noise: Kind of the generator that ran.
    """
    title = "Audit of the private mechanisms"
    body = _verdict(audits) + "".join(_mechanism(audit) for audit in audits) + _meaning(noise)
    return whole_page(
        title,
        f'<h1>{title}</h1><p class="soft">Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by '
        f"fundusgen {__version__}. Canaries are patients who do not exist: nothing here is about "
        f"a person.</p>{body}",
    )


def _verdict(audits: Sequence[MechanismAudit]) -> str:
    found = [f"{audit.mechanism.name}: {text}" for audit in audits for text in _findings(audit)]
    if not found:
        said = "<strong>Nothing contradicts the accountant's claims.</strong>"
    else:
        items = "".join(f"<li>{escape(text)}</li>" for text in found)
        said = f"<strong>Not everything is as claimed.</strong><ul>{items}</ul>"
    return f'<section class="verdict{" bad" if found else ""}">{said}</section>'


def _findings(audit: MechanismAudit) -> Iterable[str]:
    for bound in audit.exceeding:
        yield (
            f"epsilon is at least {bound.certain:.2f} ({bound.method}), where {audit.claim:.2f} is "
            "claimed"
        )
    for check in audit.failed:
        word = "not seen" if math.isnan(check.p_value) else "not so"
        yield f"{word}: {check.claim} ({check.found})"
    if not audit.sufficient:
        yield f"the best Gaussian bound is {audit.power:.0%} of the claim: more canaries are needed"


def _mechanism(audit: MechanismAudit) -> str:
    event = audit.mechanism.event
    bounds = [
        [
            f"{escape(bound.method)}<br><span class=soft>{escape(bound.source)}</span>",
            f'<span class="n">{bound.epsilon:.2f}</span>',
            _bar(bound.epsilon, audit.claim),
            escape(bound.assumes),
        ]
        for bound in audit.bounds
    ]
    checks = [
        [
            _word(check),
            escape(check.claim),
            escape(check.found),
            "" if math.isnan(check.p_value) else f'<span class="n">{check.p_value:.2g}</span>',
        ]
        for check in audit.checks
    ]
    return (
        f"<section><h2>{escape(audit.mechanism.name)}</h2><p>The accountant claims "
        f"<b>epsilon {audit.claim:.2f}</b> at delta {audit.delta:g}, for "
        f"{audit.mechanism.planned.steps:,} releases with noise multiplier "
        f"{event.noise_multiplier:g} and sample rate {event.sample_rate:g}. {audit.included:,} of "
        f"{audit.canaries:,} canaries took part, in {audit.runs:,} "
        f"{'run' if audit.runs == 1 else 'runs'}.</p>"
        + _table(
            ["method", f"epsilon at least ({CONFIDENCE:.0%})", "beside the claim", "assumes"],
            bounds,
        )
        + _table(["", "checked", "seen", "p"], checks)
        + "</section>"
    )


def _word(check: Check) -> str:
    if check.holds:
        return '<span class="yes">holds</span>'
    seen = "NOT SEEN" if math.isnan(check.p_value) else "NOT SO"
    return f'<span class="no">{seen}</span>'


def _bar(epsilon: float, claim: float) -> str:
    share = min(100.0, _CLAIM_PERCENT * epsilon / claim) if claim else 0.0
    return (
        f'<div class="bar" role="img" aria-label="{epsilon:.2f} of {claim:.2f}">'
        f'<span style="width:{share:.1f}%"></span><i style="left:{_CLAIM_PERCENT:g}%"></i></div>'
    )


def _meaning(noise: str) -> str:
    return (
        "<section><h2>What this means</h2><p>An accountant proves that epsilon is at most what it "
        "claims, if the code does what the proof assumes. Here the code was run, and what it "
        "released was searched for canaries by someone who sees every release. Epsilon is at "
        f"least each bound with a confidence of {CONFIDENCE:.0%}, where what is assumed is true. "
        "Where a claim is exact, one such bound in twenty lies above it by chance; a claim is "
        f"called false only where chance would do so once in {round(1 / ALARM):,} times, and so "
        f"is a check. The best Gaussian bound must reach {SUFFICIENT_POWER:.0%} of the claim, or "
        "the audit could not have seen much.</p><p>Nothing here proves a claim: only the proof "
        f"does. The noise came from the {escape(noise)} generator.</p></section>"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'
