"""`report.html` of a run: pictures first, then what it cost each site, then the rounds."""

import base64
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fundusgen.report.pictures import film_strip, save_png
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_atomically
from fundusgen.study import Study

# A film of fewer pictures tells nothing, one of more is too wide to be looked at.
_LEAST_FRAMES, _MOST_FRAMES = 2, 12
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
img{max-width:100%;height:auto;border-radius:4px}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}
.wide{overflow-x:auto} .note{color:#555}
"""


def write_report(run: RunFolder, study: Study) -> None:
    """Write the page, whole or not at all; it needs no other file and no network."""
    rounds = run.metrics()
    body = "\n".join(
        [
            f"<h1>{escape(study.study_id)}</h1>",
            f"<p>{_summary(study, rounds)}</p>",
            _pictures(run, rounds),
            _film(run, study),
            _collapsed(rounds),
            _undecided(rounds),
            "<h2>What it cost</h2>",
            _sites_table(rounds),
            f'<p class="note">{_GUARANTEE}</p>',
            "<h2>Rounds</h2>",
            _rounds_table(rounds),
        ]
    )
    write_atomically(
        run.report,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(study.study_id)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>\n",
    )


_GUARANTEE = (
    "Epsilon is the total over everything that a site's ledger holds, all studies together. It "
    "bounds what anyone outside the site, the server included, can learn about whether one patient "
    "with all their images took part. Patients are assumed to be at one site; where one is at "
    "several, their epsilons add up. Epsilons of different sites are never averaged."
)


def _summary(study: Study, rounds: list[dict[str, Any]]) -> str:
    sites = {site["site"] for entry in rounds for site in entry["sites"]}
    return escape(
        f"{len(sites)} sites trained a {study.model.kind.upper()} at {study.image_size} px over "
        f"{_stages(study)}, aiming at epsilon {study.privacy.target_epsilon:g} per "
        f"patient at delta {study.privacy.target_delta:g}. All images on this page are generated."
    )


def _stages(study: Study) -> str:
    names = {"votes": "votes for phantoms", "dpsgd": "DP-SGD"}
    rounds = [f"{len(numbers)} rounds of {names[s]}" for s, numbers in study.stage_rounds.items()]
    return " and ".join(rounds) + (", after a public prior" if study.prior else "")


def _undecided(rounds: list[dict[str, Any]]) -> str:
    """Say where the votes told nothing; the noise hides conditions that few patients have."""
    votes = [entry for entry in rounds if entry.get("stage") == "votes"]
    if not votes:
        return ""
    said = (
        f"In the last vote {votes[-1]['elected']:,} phantoms stood out of the noise. "
        "Their pictures are in the folder samples."
    )
    if undecided := votes[-1]["undecided"]:
        said += (
            f" For {', '.join(undecided)} none did: too few patients have it for what the noise "
            "hides. Its phantoms take after the winners of the other conditions, with its disease."
        )
    if votes[-1].get("appearance") is not None:
        said += (
            " Phantoms are developed to have the light, colours and texture that patients' "
            "photographs have on average: the noise in such a mean is "
            f"{votes[-1]['appearance']:.2f} times how much phantoms differ in it."
        )
    return f"<h2>Votes</h2><p>{escape(said)}</p>"


def _pictures(run: RunFolder, rounds: list[dict[str, Any]]) -> str:
    """Show what came out: of a run that ends with votes, phantoms and what learned from them."""
    pictures: list[Path] = sorted(run.samples.glob("round-*.png"))
    if not pictures:
        return '<p class="note">No picture was drawn.</p>'
    last = int(pictures[-1].stem.removeprefix("round-"))
    drawn_of = {entry["round"]: entry.get("stage") for entry in rounds}
    if drawn_of.get(last) != "votes":
        return _picture(pictures[-1], f"What the model draws after round {last}.")
    shown = _picture(
        pictures[-1],
        "Phantoms like those that won the last vote. More, and larger: fundusgen generate "
        "--phantoms.",
    )
    if run.refitted.is_file():
        shown += _picture(run.refitted, "What the model draws after learning from such phantoms.")
    return shown


def _picture(path: Path, said: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    alt = "Generated fundus images, a row for each condition"
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f'{image}<p class="note">{escape(said)}</p>'


def _film(run: RunFolder, study: Study) -> str:
    """Show how the pictures came about, from samples of at most a dozen rounds."""
    pictures = sorted(run.samples.glob("round-*.png"))
    if len(pictures) < _LEAST_FRAMES:
        return ""
    places = np.linspace(0, len(pictures) - 1, min(len(pictures), _MOST_FRAMES)).round()
    chosen = [pictures[int(place)] for place in dict.fromkeys(places)]
    sheets = {str(int(path.stem.removeprefix("round-"))): Image.open(path) for path in chosen}
    columns = study.evaluation.samples_per_condition
    save_png(film_strip(sheets, len(study.conditions), columns), run.film)
    data = base64.b64encode(run.film.read_bytes()).decode()
    alt = "A generated image of each condition, after one round beside the other"
    return (
        "<h2>How the pictures came about</h2>"
        f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        '<p class="note">The numbers are rounds. After a vote, phantoms like its winners; later, '
        "what the model draws from one and the same random numbers.</p>"
    )


def _collapsed(rounds: list[dict[str, Any]]) -> str:
    """Say that a GAN draws ever the same, and which generator was kept."""
    watched = [entry for entry in rounds if "generator" in entry]
    if not watched or not watched[-1]["generator"]["collapsed"]:
        return ""
    good = [entry["round"] for entry in watched if not entry["generator"]["collapsed"]]
    kept = f"that of round {good[-1]}" if good else "that of before the first round"
    found = watched[-1]["generator"]
    names = ", ".join(escape(name) for name in found["collapsed_conditions"])
    return (
        "<h2>The generator collapsed</h2><p>In the end its pictures of one condition hardly "
        f"differed{' in ' if names else ''}{names} (diversity {found['diversity'] or 0:.2f}, floor "
        f"{found['floor']:.2f}; a quarter of the prior's in each condition). "
        f"What was exported is the last that drew well, {kept}. Fewer or smaller steps of the "
        "generator may help (model.generator_steps, model.generator_learning_rate), or fewer of "
        "the refit after votes (stages.votes.refit_steps).</p>"
    )


def _sites_table(rounds: list[dict[str, Any]]) -> str:
    last: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for entry in rounds:
        for site in entry["sites"]:
            if site["state"] == "accepted":
                last[site["site"]] = site
                counts[site["site"]] = counts.get(site["site"], 0) + 1
    rows = [
        [name, f"{site['declared_patients']:,}", str(counts[name]), f"{site['epsilon']:.3f}",
         f"{site['delta']:g}", site["noise"]]
        for name, site in sorted(last.items())
    ]  # fmt: skip
    return _table(["site", "declared patients", "rounds", "epsilon", "delta", "noise"], rows)


def _rounds_table(rounds: list[dict[str, Any]]) -> str:
    rows = []
    gan = any("generator" in entry for entry in rounds)
    for entry in rounds:
        accepted = [site for site in entry["sites"] if site["state"] == "accepted"]
        others = [site for site in entry["sites"] if site["state"] != "accepted"]
        loss, drawn = entry["public_loss"], entry.get("generator")
        rows.append(
            [
                str(entry["round"]),
                str(len(accepted)),
                "" if loss is None else f"{loss:.3f}",
                *([] if not gan else _of_generator(drawn)),
                f"{max((site['epsilon'] for site in accepted), default=0):.3f}",
                f"{entry['seconds']:.1f}",
                "; ".join(f"{site['site']} {site['state']}: {site['reason']}" for site in others),
            ]
        )
    more = ["generator's steps", "known for drawn", "diversity"] if gan else []
    header = [
        "round", "sites", "loss on phantoms", *more, "largest epsilon", "seconds", "left out",
    ]  # fmt: skip
    return _table(header, rows)


def _of_generator(facts: dict[str, Any] | None) -> list[str]:
    """Steps, the discriminator's accuracy on drawn images, and how much those differ."""
    if facts is None:
        return ["", "", ""]
    accuracy, diversity = facts.get("accuracy"), facts["diversity"]
    return [
        str(facts.get("steps", "")),
        "" if accuracy is None else f"{accuracy:.0%}",
        "not finite" if diversity is None else f"{diversity:.1f}",
    ]


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
