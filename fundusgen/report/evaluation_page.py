"""`evaluation.html`: an evaluation as clinicians read it: sentences, then pictures, then numbers.

One file, no network, no script. It shows generated images and phantoms only; photographs stay on
the pages of the folder that does not leave the site (`closest_pairs`).
"""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from PIL import Image

from fundusgen.evaluation.evaluation import Evaluated
from fundusgen.evaluation.images import ImageSet
from fundusgen.report.evaluation_values import (
    KID_SCALE,
    Values,
    evaluation_values,
    figures_of,
    finds_members,
    sentences,
    task_title,
    with_interval,
)
from fundusgen.report.html import picture, table, whole_page
from fundusgen.report.interval_plot import Dot, curve_plot, dot_plot
from fundusgen.report.pictures import contact_sheet
from fundusgen.storage import write_atomically, write_json

PAGE, VALUES = "evaluation.html", "evaluation.json"
_COLUMNS = 8
_SCORES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "quadratic_kappa": "kappa"}
_REGIMES = {
    "real": "photographs",
    "synthetic": "generated",
    "real_and_synthetic": "photographs and generated",
    "topped_up": "photographs, rare ones topped up",
}
_GUESSING = {"auc": 0.5, "quadratic_kappa": 0.0}
_SETS = {"generated": "generated", "phantoms": "raw phantoms", "real": "other photographs"}


def write_evaluation(out: Path, made: Evaluated) -> Values:
    """Write evaluation.json and evaluation.html, each whole or not at all.

    Returns:
        What is in evaluation.json.

    Raises:
        OSError: They cannot be written.
    """
    values = evaluation_values(made.evaluation)
    sheets = {
        "Generated images": _sheet(made.material.generated),
        "Raw phantoms, which know no patient": _sheet(made.material.phantoms),
    }
    write_json(out / VALUES, values)
    write_atomically(out / PAGE, evaluation_page(values, sheets))
    return values


def evaluation_page(values: Values, sheets: Mapping[str, Image.Image]) -> str:
    """Give the page's HTML.

    Args:
        values: From `evaluation_values`.
        sheets: Pictures to show, by what they are; of drawn images only.
    """
    subject = values["subject"]
    title = f"Evaluation of {escape(subject['study_id'] or 'drawn images')}"
    parts = (
        _said(values),
        _pictures(sheets),
        _usefulness(values),
        _realism(values),
        _diversity(values),
        _anatomy(values),
        _leakage(values),
        _method(values),
    )
    return whole_page(
        title,
        f'<h1>{title}</h1><p class="soft">{escape(_about(values))}</p>' + "".join(parts),
    )


def _about(values: Values) -> str:
    subject, real, train = values["subject"], values["real"], values["train"]
    kind = {"vae": "A VAE", "gan": "A GAN", "voted phantoms": "Phantoms that patients voted for"}
    return (
        f"{kind.get(subject['kind'], 'Images')} at {values['size_px']} px, against "
        f"{real['images']:,} photographs of {real['patients']:,} patients who took no part in "
        "training"
        + (f", and {train['images']:,} that were trained on" if train else "")
        + f". Made {values['made_at'][:10]} by fundusgen {values['made_by']}."
    )


def _said(values: Values) -> str:
    found = [one for leak in values["leakage"] for one in leak["attacks"] if finds_members(one)]
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(values))
    return (
        f'<section class="verdict{" bad" if found else ""}"><ol class="said">{items}</ol></section>'
    )


def _pictures(sheets: Mapping[str, Image.Image]) -> str:
    figures = "".join(
        f"<figure>{picture(sheet, name)}<figcaption>{escape(name)}, not chosen</figcaption>"
        "</figure>"
        for name, sheet in sheets.items()
    )
    return f'<section><h2>Pictures</h2><div class="sheets">{figures}</div></section>'


def _sheet(images: ImageSet) -> Image.Image:
    return contact_sheet(
        {
            name: images.of_conditions([name]).images_NSSC[:_COLUMNS]
            for name in sorted(images.conditions)
        }
    )


def _usefulness(values: Values) -> str:
    useful = values["usefulness"]
    if not useful:
        return ""
    parts = [
        "<h2>Does it help to diagnose?</h2><p>Classifiers learn from generated images, from "
        "photographs, or from both, and are tested on photographs of patients whom neither the "
        "generator nor they have seen.</p>"
    ]
    for task in useful["tasks"]:
        parts.append(_task(values, task))
    if useful["left_out"]:
        rows = [
            [task_title(left["task"]), _REGIMES.get(left["regime"] or "", "all"), left["reason"]]
            for left in useful["left_out"]
        ]
        parts.append(
            "<details><summary>What could not be measured</summary>"
            + _texts(["what", "learned from", "why"], rows)
            + "</details>"
        )
    return f"<section>{''.join(parts)}</section>"


def _task(values: Values, task: Values) -> str:
    name, score = task["name"], task["scores"][0]
    patients = " and ".join(f"{count:,}" for count in task["patients"])
    title = task_title(name)
    if name == "rare":
        title += f", {', '.join(task['classes'][-1])}"
    head = (
        f"<h3>{escape(title[:1].upper() + title[1:])}</h3>"
        f'<p class="soft small">Tested on {patients} patients of each class.</p>'
    )
    figures = figures_of(values, task=name, score=score)
    whole = [figure for figure in figures if figure["share"] in (0.0, 1.0)]
    dots = [
        Dot(
            f"{_REGIMES[figure['regime']]}, {_classifier(figure)}",
            figure["estimate"]["value"], figure["estimate"]["low"], figure["estimate"]["high"],
            "real" if figure["regime"] == "real" else
            "generated" if figure["regime"] == "synthetic" else "other",
        )
        for figure in whole
    ]  # fmt: skip
    mark = _GUESSING.get(score)
    parts = [head, dot_plot(dots, f"{title}: {score}", _SCORES[score], mark=mark)]
    parts += _curves(figures, title, score)
    rows = [
        [
            _REGIMES[figure["regime"]],
            _classifier(figure),
            f"{figure['share']:.0%}" if figure["share"] else "",
            f"{figure['training']['real_patients']:,}",
            f"{figure['training']['synthetic_images']:,}",
            _SCORES[figure["score"]],
            with_interval(figure["estimate"]),
            _verdict(figure),
        ]
        for figure in figures_of(values, task=name)
    ]
    header = [
        "learned from", "classifier", "share", "patients", "generated images", "score", "value",
        "against photographs",
    ]  # fmt: skip
    return (
        "".join(parts) + f"<details><summary>All figures</summary>{_texts(header, rows)}</details>"
    )


def _curves(figures: Iterable[Values], title: str, score: str) -> Iterable[str]:
    """The augmentation curve of each classifier that has one."""
    by_classifier: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for figure in figures:
        if figure["share"] and figure["regime"] in ("real", "real_and_synthetic"):
            estimate = figure["estimate"]
            point = (100 * figure["share"], *(estimate[key] for key in ("value", "low", "high")))
            of = by_classifier.setdefault(figure["classifier"], {})
            of.setdefault(_REGIMES[figure["regime"]], []).append(point)
    for classifier, curves in by_classifier.items():
        if all(len(curve) > 1 for curve in curves.values()):
            ordered = {name: sorted(curve) for name, curve in curves.items()}
            kinds = {_REGIMES["real"]: "real", _REGIMES["real_and_synthetic"]: "other"}
            yield '<div class="wide">' + curve_plot(
                ordered, kinds, f"{title} by share of training patients",
                f"% of the training patients, {classifier.replace('_', ' ')}", _SCORES[score],
            ) + "</div>"  # fmt: skip


def _classifier(figure: Values) -> str:
    return str(figure["classifier"]).replace("_", " ")


def _verdict(figure: Values) -> str:
    change = figure["change"]
    if change is None:
        return ""
    word = "helps" if change["low"] > 0 else "harms" if change["high"] < 0 else "cannot tell"
    return f"{word}: {change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"


def _realism(values: Values) -> str:
    if not values["realism"]:
        return ""
    parts = [
        "<h2>Does it look real?</h2><p>Distance of sets of images from the test photographs; 0 "
        "would be no difference. Each network sees other things, so figures of two networks are "
        "never compared.</p>"
    ]
    for found in values["realism"]:
        name = found["extractor"]
        dots = [
            Dot(f"{_SETS[of]}, {group}", *_ends(row["kid"], KID_SCALE), of)
            for group, rows in found["rows"].items()
            for of, row in rows.items()
        ]
        header = [
            "",
            "KID x1000",
            "Frechet",
            "precision",
            "recall",
            "density",
            "coverage",
            "images",
        ]
        table_rows = [
            [
                f"{_SETS[of]}, {group}",
                with_interval(row["kid"], KID_SCALE, 1),
                with_interval(row["frechet"]),
                *(with_interval(row[key], share=key != "density") for key in _OVERLAPS),
                f"{row['images']:,}, {row['compared']:,}",
            ]
            for group, rows in found["rows"].items()
            for of, row in rows.items()
        ]
        overall = [dot for dot in dots if dot.label.endswith(", overall")]
        parts.append(
            f"<h3>By the features {escape(name)}</h3>"
            + dot_plot(overall, f"KID by {name}", "KID x1000, smaller is nearer")
            + "<details><summary>All distances, by condition</summary>"
            + dot_plot(dots, f"KID by {name} and condition", "KID x1000")
            + table(header, table_rows)
            + '<p class="soft small">All but KID are of equally many images of both sides, which '
            "is the second number of images; other conditions have too few patients.</p></details>"
        )
    return f"<section>{''.join(parts)}</section>"


_OVERLAPS = ("precision", "recall", "density", "coverage")


def _diversity(values: Values) -> str:
    varied = values["diversity"]
    if not varied:
        return ""
    rows = [
        [
            _SETS[name] if name == "generated" else "test photographs",
            with_interval(of["vendi"], digits=1),
            with_interval(of["nearest"]),
            with_interval(of["ms_ssim"]),
            f"{of['images']:,}",
        ]
        for name, of in varied.items()
    ]
    return (
        "<section><h2>Does it vary?</h2><p>A generator that draws few pictures again and again "
        "has fewer different images than photographs have, nearer neighbours, and pairs of one "
        "condition that are more alike.</p>"
        + table(
            ["", "entirely different images", "distance to the nearest", "MS-SSIM of pairs", "of"],
            rows,
        )
        + "</section>"
    )


def _anatomy(values: Values) -> str:
    anatomy = values["anatomy"]
    if not anatomy:
        return ""
    dots, rows = [], []
    sides = zip(anatomy["generated"], anatomy["phantoms"], anatomy["real"], strict=True)
    for drawn, phantoms, real in sides:
        name, unit = drawn["measure"]["name"], drawn["measure"]["unit"]
        for kind, one in (("generated", drawn), ("phantoms", phantoms), ("real", real)):
            if one["distance"]:
                dots.append(Dot(f"{name}, {_SETS[kind]}", *_ends(one["distance"]), kind))
        rows.append(
            [
                f"{name} ({unit})",
                _quartiles(drawn["generated_quantiles"]),
                _quartiles(drawn["real_quantiles"]),
                *(with_interval(one["distance"]) for one in (drawn, phantoms, real)),
            ]
        )
    header = [
        "", "generated, median (quartiles)", "photographs", "distance", "of raw phantoms",
        "of two halves of the photographs",
    ]  # fmt: skip
    return (
        "<section><h2>Is the anatomy right?</h2><p>What simple filters measure on every eye, as "
        "distance of its distribution from that of the photographs, in standard deviations of "
        "these.</p>"
        + dot_plot(dots, "Distances of measures", "standard deviations")
        + f"<details><summary>All measures</summary>{table(header, rows)}</details></section>"
    )


def _quartiles(quantiles: list[float | None]) -> str:
    low, middle, high = quantiles[1:4]
    if low is None or middle is None or high is None:
        return "-"
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _leakage(values: Values) -> str:
    if not values["leakage"]:
        return ""
    parts = [
        "<h2>Does it give patients away?</h2><p>Attacks that try to tell patients who were trained "
        "on from the test patients. 0.5 is guessing. Phantoms know nobody: what an attack achieves "
        "with them is how the two sets of patients differ, and no leak. An attack that fails "
        "proves nothing about others; what bounds all of them is epsilon.</p>"
    ]
    for leak in values["leakage"]:
        dots = []
        for one in leak["attacks"]:
            name = one["attack"]["name"]
            for kind, which in (("generated", one["attack"]), ("phantoms", one["control"])):
                dots.append(Dot(f"{name}, {_SETS[kind]}", *_ends(which["auc"]), kind))
        if values["model_attack"] and leak is values["leakage"][0]:
            own = values["model_attack"]
            dots.append(Dot(f"{own['name']}, weights", *_ends(own["auc"]), "other"))
        parts.append(
            f"<h3>By the features {escape(leak['extractor'])}</h3>"
            + dot_plot(dots, f"Attacks by {leak['extractor']}", "AUC, by patient", mark=0.5)
            + _attack_table(leak)
            + _copying_table(leak)
        )
    if values["model_attack"]:
        own = values["model_attack"]
        parts.append(
            f"<p>By the released weights ({escape(own['name'])}): AUC "
            f"{with_interval(own['auc'])}; "
            f"{with_interval(own['true_positive_rate'], share=True)} of the members are named at "
            "1 % false positives. There is no control for it: where training and test patients "
            "come from different cameras, this difference is in it.</p>"
        )
    return f"<section>{''.join(parts)}</section>"


def _attack_table(leak: Values) -> str:
    rows = [
        [
            one["attack"]["name"],
            with_interval(one["attack"]["auc"]),
            with_interval(one["control"]["auc"]),
            with_interval(one["attack"]["true_positive_rate"], share=True),
            "found" if finds_members(one) else "not found",
        ]
        for one in leak["attacks"]
    ]
    caveats = {one["attack"]["caveat"] for one in leak["attacks"] if one["attack"]["caveat"]}
    return table(
        ["attack", "AUC", "with phantoms", "members named at 1 % false positives", "members"], rows
    ) + "".join(f'<p class="soft small">{escape(caveat)}</p>' for caveat in sorted(caveats))


def _copying_table(leak: Values) -> str:
    rows = [
        [
            name,
            f"{of['test']['c_t']:.2f}" if of["test"]["c_t"] is not None else "-",
            f"{of['mirrored']['c_t']:.2f}" if of["mirrored"]["c_t"] is not None else "-",
            *(
                f"{with_interval(of[which]['share'])}, p {of[which]['p_value']:.3f}"
                for which in ("share", "closest_share")
            ),
        ]
        for name, of in (("generated", leak["copying"]), ("raw phantoms", leak["copying_control"]))
    ]
    return table(
        [
            "copying", "C_T", "C_T, sets exchanged", "nearer to a training patient",
            "of the tenth nearest to any patient",
        ],
        rows,
    )  # fmt: skip


def _method(values: Values) -> str:
    subject = values["subject"]
    extractors = "".join(
        f"<li>{escape(e['name'])}: {escape(e['version'])}"
        + (f", weights <code>{escape(e['digest'][:16])}</code>" if e["digest"] else "")
        + "</li>"
        for e in values["extractors"]
    )
    settings, seconds = values["settings"], values["seconds"]
    left = f" {values['unusable']:,} photographs could not be used." if values["unusable"] else ""
    not_known = (
        f" Photographs of {escape(', '.join(values['not_known']))} were left out, which the "
        "generator does not draw."
        if values["not_known"]
        else ""
    )
    return (
        "<section><h2>How it was measured</h2>"
        f"<p>{values['generated']['images']:,} images were drawn with seed {settings['seed']}. All "
        f"are shown as right eyes.{left}{not_known} Intervals are of 95 %, by drawing patients "
        f"again ({settings['replicates']:,} times). Figures of real patients on this page are "
        "without noise: they are not covered by the generator's epsilon.</p>"
        f"<ul>{extractors}</ul>"
        f"<p>Generator: study <code>{escape(subject['study_hash'][:16] or '-')}</code>, content "
        f"<code>{escape(subject['digest'][:16])}</code>. Test photographs: "
        f"<code>{escape(values['real_digest'][:16])}</code>. It took "
        f"{sum(seconds.values()) / 60:.1f} minutes.</p></section>"
    )


def _ends(estimate: Values, scale: float = 1.0) -> tuple[float, float, float]:
    """Value and interval, where a plot wants them."""
    return scale * estimate["value"], scale * estimate["low"], scale * estimate["high"]


def _texts(header: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are text."""
    return table(header, rows).replace('class="n"', "")
