"""`audit.html`: an audit as a page that a privacy officer reads, and can check without us.

One file, no network, no script. First whether it holds and how much is spent, then what was
found, then how it came to be, then what the number means and how to compute it again.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from fundusgen import __version__
from fundusgen.privacy.audit import Audit, StudyShare
from fundusgen.privacy.audit_findings import Finding
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.keys import key_fingerprint
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.privacy.receipt_folder import numbers_of
from fundusgen.report.audit_check import recipes
from fundusgen.report.html import whole_page
from fundusgen.report.step_plot import COLOURS, Step, step_plot
from fundusgen.storage import write_atomically

_MAX_FINDINGS = 200


def write_audit_page(path: Path, audit: Audit) -> None:
    """Write the page, whole or not at all; it needs no other file and no network.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(path, audit_page(audit))


def audit_page(audit: Audit) -> str:
    """Give the page's HTML."""
    body = "".join(
        part
        for part in (
            _verdict(audit),
            _findings("What does not hold", audit.faults),
            _over_time(audit),
            _studies(audit),
            _findings("Good to know", audit.notices),
            _story(audit),
            _checks(audit),
            _meaning(audit),
            _by_yourself(audit),
            _identity(audit),
        )
        if part
    )
    title = f"Privacy audit of {escape(audit.site)}"
    return whole_page(
        title,
        f'<h1>{title}</h1><p class="soft">Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by '
        f"fundusgen {__version__}, from a ledger of {len(audit.ledger.entries):,} entries"
        f"{_since(audit)}.</p>{body}",
    )


def _since(audit: Audit) -> str:
    created = audit.ledger.created_at
    return f" that begins on {escape(created[:10])}" if created else ""


def _verdict(audit: Audit) -> str:
    faults = len(audit.faults)
    skipped = [check for check in audit.checks if check.not_checked]
    if faults:
        headline = "One thing does not hold." if faults == 1 else f"{faults} things do not hold."
        said = (
            "The numbers on this page come from what is left of the ledger, counted so that "
            "nothing that any entry states is left out. What follows says what is wrong, and "
            "what may be missing."
        )
    else:
        headline = "Everything that was checked holds."
        said = "The ledger is as it was written, and the total below is what it adds up to."
    if skipped:
        said += f" Not everything could be checked: {_listed(c.not_checked for c in skipped)}."
    return (
        f'<section class="verdict{" bad" if faults else ""}"><strong>{headline}</strong>'
        f"<p>{escape(said)}</p>{_meter(audit)}</section>"
    )


def _meter(audit: Audit) -> str:
    total, policy = audit.totals.used, audit.policy
    answers = sum(row.state == "released" for row in audit.ledger.rows)
    numbers = [
        ("spent, epsilon", f"{total:.3f}"),
        ("answer sent" if answers == 1 else "answers sent", f"{answers:,}"),
        ("study" if len(audit.studies) == 1 else "studies", f"{len(audit.studies):,}"),
    ]
    bar = ""
    if policy is not None:
        left = policy.max_epsilon - total
        numbers.insert(1, ("allowed by the policy", f"{policy.max_epsilon:g}"))
        numbers.insert(2, ("left", f"{left:.3f}") if left >= 0 else ("above it by", f"{-left:.3f}"))
        share = min(1.0, total / policy.max_epsilon)
        colour = "var(--bad)" if left < 0 else "#0072B2"
        bar = (
            f'<div class="meter" role="img" aria-label="{100 * share:.0f} percent spent">'
            f'<span style="width:{100 * share:.1f}%;background:{colour}"></span></div>'
        )
    cells = "".join(f"<span><b>{value}</b>{escape(name)}</span>" for name, value in numbers)
    return (
        f'{bar}<div class="numbers">{cells}</div>'
        f'<p class="soft small">Per patient, with all their images, at delta {audit.delta:g}, '
        "over everything that this ledger holds.</p>"
    )


def _findings(title: str, findings: tuple[Finding, ...]) -> str:
    if not findings:
        return ""
    shown = "".join(_finding(found) for found in findings[:_MAX_FINDINGS])
    more = len(findings) - _MAX_FINDINGS
    if more > 0:
        shown += f"<p>{more:,} more are in audit.json.</p>"
    return f"<section><h2>{title}</h2>{shown}</section>"


def _finding(found: Finding) -> str:
    where = [
        f"entry {found.entry}" if found.entry is not None else "",
        f"receipt {found.receipt}" if found.receipt is not None else "",
        f"written {_time(found.at)}" if found.at else "",
    ]
    place = " · ".join(part for part in where if part)
    return (
        f'<div class="finding{"" if found.fault else " notice"}">'
        f"<h3>{escape(_sentence(found.found))}</h3>"
        f"<p>Expected: {_marked(found.expected.rstrip('.'))}.</p>"
        f"<p>{_marked(found.meaning)}</p>"
        f'<p class="where">{escape(place)}{" · " if place else ""}<code>{found.code}</code></p>'
        "</div>"
    )


def _marked(text: str) -> str:
    """As HTML, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts)
    )


def _over_time(audit: Audit) -> str:
    if not audit.points:
        return ""
    colour = {study.study_hash: number for number, study in enumerate(audit.studies)}
    rows = {row.event_id: row for row in audit.ledger.rows}
    caps = {
        period.policy_hash: period.policy.max_epsilon
        for period in audit.periods
        if period.policy is not None
    }
    steps = [
        Step(
            value=point.epsilon,
            cap=_cap(rows[point.event_id], caps, audit),
            colour=colour[rows[point.event_id].study_hash],
            label=f"{point.study_id}, round {point.round_number}, {_time(point.at)}: "
            f"epsilon {point.epsilon:.3f}",
            tick=point.at[:10],
        )
        for point in audit.points
    ]
    if audit.policy is not None and steps[-1].cap != audit.policy.max_epsilon:
        last = steps[-1]
        steps.append(
            Step(
                value=last.value,
                cap=audit.policy.max_epsilon,
                colour=last.colour,
                label=f"now: epsilon {last.value:.3f}, cap {audit.policy.max_epsilon:g}",
                tick="now",
            )
        )
    legend = " ".join(
        f'<span><span class="key" style="background:{COLOURS[number % len(COLOURS)]}"></span>'
        f"{escape(study.study_id)}</span>"
        for number, study in enumerate(audit.studies)
    )
    note = ""
    if len(audit.points) < len(audit.ledger.rows):
        note = f"{len(audit.points)} of {len(audit.ledger.rows):,} events are drawn. "
    if audit.totals.filter is not None:
        note += (
            "The curve is the tight composition; the policy counts by a privacy filter, which "
            f"stands at {audit.totals.filter:.3f}."
        )
    plot = step_plot(steps, title="Epsilon after each event, and the cap", y_label="epsilon")
    return (
        f'<section><h2>Budget over time</h2><div class="numbers small">{legend}</div>'
        f'<div class="wide">{plot}</div>'
        f'<p class="soft small">{escape(note)}</p></section>'
    )


def _cap(row: LedgerRow, caps: dict[str, float], audit: Audit) -> float | None:
    if row.policy_hash in caps:
        return caps[row.policy_hash]
    return audit.policy.max_epsilon if audit.policy and not caps else None


def _studies(audit: Audit) -> str:
    if not audit.studies:
        return ""
    head = ["study", "answers", "mechanism", "epsilon alone", "approved by", "receipts"]
    rows = []
    for number, study in enumerate(audit.studies):
        key = f'<span class="key" style="background:{COLOURS[number % len(COLOURS)]}"></span>'
        released = sum(row.state == "released" for row in study.rows)
        rows.append(
            [
                f"{key}{escape(study.study_id)}<br><code>{escape(study.study_hash[:12])}</code>",
                f'<span class="n">{released:,} of {len(study.rows):,}</span>',
                "<br>".join(escape(_mechanism(event)) for event in study.events),
                f'<span class="n">{study.epsilon_alone:.3f}</span>',
                _approved_by(audit, study),
                _receipts_of(study, released),
            ]
        )
    note = (
        '<p class="soft small">Epsilons of studies do not simply add up: the total is that of all '
        "mechanisms together, which is less than the sum.</p>"
        if len(rows) > 1
        else ""
    )
    return f"<section><h2>By study</h2>{_table(head, rows)}{note}</section>"


def _receipts_of(study: StudyShare, released: int) -> str:
    if study.receipts is None:
        return '<span class="soft">not given</span>'
    mark = "yes" if study.receipts >= released else "no"
    return f'<span class="{mark}">{study.receipts:,} of {released:,}</span>'


def _approved_by(audit: Audit, study: StudyShare) -> str:
    names = [
        f"{escape(str(remark.note.get('by', 'somebody')))}, {escape(remark.written_at[:10])}"
        for remark in audit.ledger.remarks
        if remark.kind == "approved" and remark.study_hash == study.study_hash
    ]
    return "<br>".join(names) or '<span class="soft">nobody named</span>'


def _mechanism(event: Event) -> str:
    noise = f"noise {event.noise_multiplier:.4g}"
    steps = f"{event.steps:,} step{'' if event.steps == 1 else 's'}"
    if event.kind == "gaussian":
        return f"Gaussian, {noise}, {steps}"
    return f"DP-SGD, {noise}, rate {event.sample_rate:g}, {steps}"


def _story(audit: Audit) -> str:
    if not audit.story:
        return ""
    rows = [
        [
            f'<span class="when">{escape(_time(item.at))}</span>',
            f'<span class="n">{item.entry}</span>',
            escape(_sentence(item.text)),
            f'<span class="n">{item.epsilon:.3f}</span>' if item.epsilon is not None else "",
        ]
        for item in audit.story
    ]
    return (
        "<section><h2>What happened, and who decided</h2>"
        f"{_table(['when (UTC)', 'entry', 'what', 'epsilon after'], rows)}"
        '<p class="soft small">From the entries of the ledger, in their order; times are those of '
        "the site's clock, and names are as they were given.</p></section>"
    )


def _checks(audit: Audit) -> str:
    rows = []
    for check in audit.checks:
        if check.faults:
            state = f'<span class="no">{check.faults} against it</span>'
        elif check.not_checked:
            state = f'<span class="skip">not checked</span><br>{escape(check.not_checked)}'
        else:
            state = '<span class="yes">holds</span>'
        rows.append([escape(check.claim), state])
    totals = audit.totals
    prv = "not computed" if totals.prv is None else f"{totals.prv:.4f}"
    bounds = [
        ["PRV (Gopi et al. 2021)", prv],
        ["PLD (Google's dp-accounting), independent code", f"{totals.pld:.4f}"],
        ["Renyi DP (Mironov et al. 2019), looser", f"{totals.rdp:.4f}"],
        ["counted: the smallest of PRV, Renyi DP and the exact Gaussian", f"{totals.tightest:.4f}"],
    ]
    if totals.filter is not None:
        bounds.append(
            ["Privacy filter (Feldman and Zrnic 2021), which this policy counts with",
             f"{totals.filter:.4f}"]
        )  # fmt: skip
    bounds = [[name, f'<span class="n">{value}</span>'] for name, value in bounds]
    return (
        f"<section><h2>What was checked</h2>{_table(['claim', 'result'], rows)}"
        f"<h3>The same total by several accountants</h3>{_table(['accountant', 'epsilon'], bounds)}"
        f"{_coarsened(audit)}</section>"
    )


def _coarsened(audit: Audit) -> str:
    if not audit.totals.coarsened:
        return ""
    return (
        '<p class="soft small">For PRV and PLD the many different mechanisms of this ledger were '
        "rounded to fewer, towards less privacy. The recipe below computes with all of them.</p>"
    )


def _meaning(audit: Audit) -> str:
    total = audit.totals.used
    odds = f"{math.exp(total):,.1f}" if total < 20 else f"10^{total / math.log(10):.0f}"
    patients = sorted({row.patients_declared for row in audit.ledger.rows} - {0})
    declared = f" ({', '.join(f'{number:,}' for number in patients)})" if patients else ""
    return f"""<section><h2>What the number means</h2>
<p>Take any one patient of this hospital, with all their images and labels, and somebody outside who
knows everything else and sees everything that this hospital has ever sent. The probability that
they come to any given conclusion is at most e<sup>{total:.2f}</sup> = {odds} times what it would be
if the patient's images had never been used, plus {audit.delta:g}; and the other way round. The
smaller both numbers are, the less can be learned about anybody; at 0, nothing. As a rule of thumb,
an epsilon of up to 1 is strong, up to 10 is common in practice, and more says little by itself
(Ponomareva et al. 2023, <i>How to DP-fy ML</i>).</p>
<h3>What it covers</h3>
<p>Everything that left the site under this ledger, over all rounds, restarts and studies, against
everyone outside, the study's server included. The unit is the patient; neighbours differ by one
patient added or removed with all their images.</p>
<h3>What it assumes</h3>
<ul>
<li>The patient is at one site. Where one is at several, the epsilons of these sites add up.</li>
<li>The number of patients is as public as the site declares it{declared}.</li>
<li>The code that answered is the one whose hash the ledger names, and does what it says.</li>
<li>How long a round took, and that a site refused because no image of its could be used or its disk
was full, are not covered.</li>
<li>{_composition(audit)}</li>
</ul>
<h3>What a ledger cannot show by itself</h3>
<p>Whoever can write to the site's folder can put an older ledger back, with its note of the last
entry, or write a new one. That is why servers keep signed receipts: held against them, both are
found. Whoever also holds the site's key and all receipts of all servers can lie about everything.
Receipts of servers that were not given to this audit were not held against it.</p></section>"""


def _composition(audit: Audit) -> str:
    rules = {
        (period.policy.composition, period.policy.max_epsilon, period.policy.delta)
        for period in audit.periods
        if period.policy is not None
    }
    # The filter's order follows from cap and delta: it is proven for one that never changed.
    if len(rules) == 1 and next(iter(rules))[0] == "adaptive":
        return (
            "The total is counted by a privacy filter, which also holds where later studies were "
            "chosen in view of what earlier ones gave."
        )
    return (
        "Later studies were not chosen in view of what earlier ones gave. Where they were, count "
        "with <code>composition: adaptive</code>."
    )


def _by_yourself(audit: Audit) -> str:
    parts = "".join(
        f"<details><summary>{escape(title)}</summary><p>{escape(said)}</p>"
        f"<pre>{escape(code)}</pre></details>"
        for title, said, code in recipes(merged(audit.ledger.events), audit.delta)
    )
    return (
        "<section><h2>Check it without us</h2><p>None of this needs fundusgen. Copy ledger.db to "
        "a folder first.</p>"
        f"{parts}</section>"
    )


def _identity(audit: Audit) -> str:
    rows = [
        ["identity of the ledger", f"<code>{escape(audit.ledger.genesis or 'lost')}</code>"],
        ["digest of its last entry", f"<code>{escape(audit.ledger.last_digest)}</code>"],
    ]
    rows += [
        ["key of the site", f"<code>{escape(key_fingerprint(key))}</code>"]
        for key in audit.evidence.keys
    ]
    if audit.evidence.receipts:
        rows.append(["receipts given", escape(numbers_of(audit.evidence.receipts))])
    if audit.policy is not None:
        rows.append(["policy now", f"<code>{audit.policy.policy_hash}</code>"])
    codes = dict.fromkeys(row.code_hash for row in audit.ledger.rows if row.code_hash)
    rows += [["code that answered", f"<code>{escape(code)}</code>"] for code in codes]
    return f"<section><h2>What this page is about</h2>{_table(['', ''], rows)}</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    names = [escape(name) for name in head]
    top = "".join(f"<th>{name}</th>" for name in names) if any(names) else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<tr>{top}</tr>" if top else ""}{body}</table></div>'


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _time(at: str) -> str:
    return f"{at[:10]} {at[11:16]}" if len(at) >= 16 else at


def _sentence(text: str) -> str:
    """As a sentence; the first letter is raised only where a word begins, not a name."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")
