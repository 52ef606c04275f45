"""The model card of a release, to read as text or as a page.

After Mitchell et al. 2019, "Model Cards for Model Reporting": what it is, for what and for what
not, whose data, at what cost to them, how good, and what it must not be trusted with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from fundusgen.release.gate import Check
from fundusgen.release.receipt_proof import SiteProof
from fundusgen.release.rules import Gate
from fundusgen.report.evaluation_values import sentences
from fundusgen.report.html import picture, table, whole_page
from fundusgen.study import Study

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the card.

    Attributes:
        title: Its heading.
        paragraphs: Plain text.
        bullets: Plain text, after the paragraphs.
        header: Of a table, after these; empty where there is none.
        rows: Of the table.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        title: Of the whole.
        summary: A plain sentence, before all else.
        warning: Stands out, where the gate was overridden; empty otherwise.
        sections: In order.
    """

    title: str
    summary: str
    warning: str
    sections: tuple[Section, ...]


def card_of(
    study: Study,
    rounds: int,
    proofs: Sequence[SiteProof],
    evaluations: Sequence[Values],
    rules: Gate,
    found: Sequence[Check],
    override: str,
    undecided: Sequence[str] = (),
) -> Card:
    """Write the card.

    Args:
        study: That was trained.
        rounds: That were finished.
        proofs: What the receipts prove.
        evaluations: Contents of evaluation.json.
        rules: Of the gate.
        found: What the gate found.
        override: The reason for a release although the gate has failed; empty where it has not.
        undecided: Conditions whose votes were lost in the noise.
    """
    failed = [check for check in found if not check.passed]
    warning = ""
    if failed:
        names = ", ".join(dict.fromkeys(check.name for check in failed))
        warning = f"Released although the gate failed ({names}). Reason given: {override}"
    kind = {"vae": "variational autoencoder", "gan": "generative adversarial network"}
    summary = (
        f"Draws retinal fundus images of {study.image_size} px that show no real patient: a "
        f"{kind[study.model.kind]} that {len(proofs)} hospitals trained jointly in {rounds} "
        "rounds, without a photograph leaving a hospital."
    )
    return Card(
        f"Generator of the study {study.study_id}",
        summary,
        warning,
        (
            _quality(evaluations),
            _use(),
            _data(study, proofs),
            _privacy(study, proofs),
            _limits(evaluations, undecided),
            _gate(rules, found),
            _technical(study),
        ),
    )


def as_text(card: Card) -> str:
    """The card in Markdown."""
    lines = [f"# {card.title}", "", card.summary, ""]
    if card.warning:
        lines += [f"> **{card.warning}**", ""]
    for section in card.sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        if section.bullets:
            lines += [*(f"- {bullet}" for bullet in section.bullets), ""]
        if section.rows:
            lines += [
                f"| {' | '.join(section.header)} |",
                "|---" * len(section.header) + "|",
                *(f"| {' | '.join(map(_cell, row))} |" for row in section.rows),
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def as_page(card: Card, sheet: Image.Image | None) -> str:
    """The card as a page.

    Args:
        card: The card.
        sheet: Drawn images to show after the summary.
    """
    parts = [f"<h1>{escape(card.title)}</h1><p>{escape(card.summary)}</p>"]
    if card.warning:
        parts.append(
            f'<section class="verdict bad"><strong>{escape(card.warning)}</strong></section>'
        )
    if sheet is not None:
        shown = picture(sheet, "Generated images, a row for each condition")
        parts.append(f"<section>{shown}<p class='soft small'>Drawn, not chosen.</p></section>")
    for section in card.sections:
        bullets = "".join(f"<li>{escape(bullet)}</li>" for bullet in section.bullets)
        parts.append(
            f"<section><h2>{escape(section.title)}</h2>"
            + "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs)
            + (f"<ul>{bullets}</ul>" if bullets else "")
            + (table(section.header, section.rows).replace('class="n"', "") if section.rows else "")
            + "</section>"
        )
    return whole_page(escape(card.title), "".join(parts))


def _quality(evaluations: Sequence[Values]) -> Section:
    if not evaluations:
        return Section("Quality", ("Not measured.",))
    paragraphs, bullets = [], []
    for values in evaluations:
        real = values["real"]
        paragraphs.append(
            f"Measured against {real['images']:,} photographs of {real['patients']:,} patients who "
            "took no part in training; evaluation.html has all figures."
        )
        bullets += list(sentences(values))
    return Section("Quality", tuple(paragraphs), tuple(bullets))


def _use() -> Section:
    return Section(
        "What it is for, and what not",
        (),
        (
            "For: topping up training sets, where a test on real photographs shows that it helps; "
            "teaching how conditions look, beside real photographs; research on private, federated "
            "generation.",
            "Not for: diagnosis, or any decision about a patient.",
            "Not for: evidence that a finding exists or looks like this. Conditions are labels "
            "that hospitals gave, and fine structure may be missing or wrong.",
            "Not for: testing a classifier. Tests need real photographs.",
            "Forbidden: passing its images off as photographs of patients; trying to find out who "
            "took part.",
        ),
    )


def _data(study: Study, proofs: Sequence[SiteProof]) -> Section:
    return Section(
        "Data",
        (
            "Photographs stayed in the hospitals. Numbers of patients are as each hospital "
            "declares them publicly, which may be rounded.",
            f"Conditions: {', '.join(study.conditions)}.",
        ),
        (),
        ("hospital", "patients, declared", "answers"),
        tuple((p.site, f"{p.declared_patients:,}", f"{p.answers}") for p in proofs),
    )


def _privacy(study: Study, proofs: Sequence[SiteProof]) -> Section:
    privacy = study.privacy
    return Section(
        "Privacy",
        (
            f"Differential privacy for adding or removing one {privacy.unit} with all their images "
            "and labels, against everyone outside the hospital, the study's server included. The "
            "study aimed at epsilon "
            f"{privacy.target_epsilon:g} at delta {privacy.target_delta:g}.",
            "What the number means: whatever anyone concludes from this generator about one "
            f"{privacy.unit}, the odds of concluding it are at most exp(epsilon) times what they "
            "would be had the patient not taken part, except with probability delta. Small is "
            "good: 1 is strong, 8 is usual for images, and no number says that nothing is learned.",
            "The table has each hospital's total over all studies that its ledger held at its "
            "last answer, by the receipts in this bundle, signed with the keys in known-sites: "
            "whether a key is a hospital's own, ask the hospital. Epsilons of several hospitals "
            "add up for a patient who is at several of them. Drawing images costs nothing.",
            *_noise(proofs),
        ),
        (),
        ("hospital", "epsilon", "delta", "receipts"),
        tuple(
            (
                p.site,
                "-" if p.epsilon is None else f"{p.epsilon:.3f}",
                "-" if p.delta is None else f"{p.delta:g}",
                f"{p.receipts}" + (f", {len(p.faults)} faults" if p.faults else ""),
            )
            for p in proofs
        ),
    )


def _noise(proofs: Sequence[SiteProof]) -> tuple[str, ...]:
    """Whose noise is for simulations only: an epsilon that holds on paper."""
    fast = [proof.site for proof in proofs if "fast" in proof.noise]
    if not fast:
        return ()
    return (
        f"The noise of {', '.join(fast)} came from the fast generator, which is for simulations: "
        "who reconstructs its state can subtract the noise, and nothing in the table holds.",
    )


def _limits(evaluations: Sequence[Values], undecided: Sequence[str]) -> Section:
    unknown = sorted({name for values in evaluations for name in values["not_known"]})
    bullets = [
        "Conditions that few patients have are close to what the simulator knew of them: noise "
        "hides small groups, as it should.",
        "Hospitals' cameras, populations and labels are in it; others may be nothing like it.",
        "Black-box and white-box attacks that failed say nothing about those not tried.",
    ]
    if undecided:
        bullets.append(
            f"No patient's vote for {', '.join(undecided)} stood out of the noise: what it draws "
            "of them is the simulator's idea of the disease, as other patients' cameras show it."
        )
    if unknown:
        bullets.append(f"It does not draw {', '.join(unknown)}, which test patients had.")
    return Section("Limits", (), tuple(bullets))


def _gate(rules: Gate, found: Sequence[Check]) -> Section:
    return Section(
        "What was demanded before release",
        ("Whoever measured is believed: no file can show whose photographs were used.",),
        tuple(_own_rules(rules)),
        ("rule", "demanded", "found", ""),
        tuple(
            (check.name, check.demanded, check.found, "passed" if check.passed else "FAILED")
            for check in found
        ),
    )


def _own_rules(rules: Gate) -> Iterator[str]:
    """Rules that are not the defaults: a gate may have been opened wide."""
    usual = Gate().model_dump()
    for part, its_rules in rules.model_dump().items():
        for name, value in its_rules.items():
            if value != usual[part][name]:
                yield f"{part}.{name} was {value}; without a rule of its own, {usual[part][name]}."


def _technical(study: Study) -> Section:
    first = study.conditions[0]
    return Section(
        "Technical",
        (),
        (
            f"Draw: fundusgen generate BUNDLE --condition {first} --count 100 --out DIR",
            "Verify: fundusgen verify BUNDLE --key release.pub, with the key from whoever released "
            "it, not from the bundle.",
            f"Study: {study.study_hash}",
        ),
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
