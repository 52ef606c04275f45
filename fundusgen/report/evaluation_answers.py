"""The sections of `evaluation.html`, one for each question: plots first, then all figures.

Values are those of evaluation.json (`evaluation_values`); what could not be computed is null there
and a dash here.
"""

from collections.abc import Iterable
from html import escape

from fundusgen.report.evaluation_values import (
    KID_SCALE,
    Values,
    figures_of,
    finds_members,
    known,
    task_title,
    with_interval,
)
from fundusgen.report.html import table, wide
from fundusgen.report.interval_plot import Dot, curve_plot, dot_plot

_SCORES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "quadratic_kappa": "kappa"}
_REGIMES = {
    "real": "photographs",
    "synthetic": "generated",
    "real_and_synthetic": "photographs and generated",
    "topped_up": "photographs, rare ones topped up",
}
_GUESSING = {"auc": 0.5, "quadratic_kappa": 0.0}
_SETS = {"generated": "generated", "phantoms": "raw phantoms", "real": "other photographs"}
_OVERLAPS = ("precision", "recall", "density", "coverage")


def usefulness_section(values: Values) -> str:
    """Does it help to diagnose? Empty where that was not asked."""
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


def realism_section(values: Values) -> str:
    """Does it look real? Empty where that was not asked."""
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
            dot
            for group, rows in found["rows"].items()
            for of, row in rows.items()
            for dot in _dots(f"{_SETS[of]}, {group}", row["kid"], of, KID_SCALE)
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
            + wide(dot_plot(overall, f"KID by {name}", "KID x1000, smaller is nearer"))
            + "<details><summary>All distances, by condition</summary>"
            + wide(dot_plot(dots, f"KID by {name} and condition", "KID x1000"))
            + table(header, table_rows)
            + '<p class="soft small">All but KID are of equally many images of both sides, which '
            "is the second number of images; other conditions have too few patients.</p></details>"
        )
    return f"<section>{''.join(parts)}</section>"


def diversity_section(values: Values) -> str:
    """Does it vary? Empty where that was not asked."""
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


def anatomy_section(values: Values) -> str:
    """Is the anatomy right? Empty where that was not asked."""
    anatomy = values["anatomy"]
    if not anatomy:
        return ""
    dots: list[Dot] = []
    rows = []
    sides = zip(anatomy["generated"], anatomy["phantoms"], anatomy["real"], strict=True)
    for drawn, phantoms, real in sides:
        name, unit = drawn["measure"]["name"], drawn["measure"]["unit"]
        for kind, one in (("generated", drawn), ("phantoms", phantoms), ("real", real)):
            dots += _dots(f"{name}, {_SETS[kind]}", one["distance"], kind)
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
        + wide(dot_plot(dots, "Distances of measures", "standard deviations"))
        + f"<details><summary>All measures</summary>{table(header, rows)}</details></section>"
    )


def leakage_section(values: Values) -> str:
    """Does it give patients away? Empty where that was not asked, or cannot be answered."""
    if not values["leakage"]:
        return ""
    parts = [
        "<h2>Does it give patients away?</h2><p>Attacks that try to tell patients who were trained "
        "on from the test patients. 0.5 is guessing. Phantoms know nobody: what an attack achieves "
        "with them is how the two sets of patients differ, and no leak. An attack that fails "
        "proves nothing about others; what bounds all of them is epsilon.</p>"
    ]
    for leak in values["leakage"]:
        dots: list[Dot] = []
        for one in leak["attacks"]:
            name = one["attack"]["name"]
            for kind, which in (("generated", one["attack"]), ("phantoms", one["control"])):
                dots += _dots(f"{name}, {_SETS[kind]}", which and which["auc"], kind)
        if values["model_attack"] and leak is values["leakage"][0]:
            own = values["model_attack"]
            dots += _dots(f"{own['name']}, weights", own["auc"], "other")
        parts.append(
            f"<h3>By the features {escape(leak['extractor'])}</h3>"
            + wide(dot_plot(dots, f"Attacks by {leak['extractor']}", "AUC, by patient", mark=0.5))
            + _attack_table(leak)
            + _copying_table(leak)
        )
    if values["model_attack"]:
        own = values["model_attack"]
        parts.append(
            f"<p>By all weights of the model ({escape(own['name'])}): AUC "
            f"{with_interval(own['auc'])}; "
            f"{with_interval(own['true_positive_rate'], share=True)} of the members are named at "
            "1 % false positives. There is no control for it: where training and test patients "
            "come from different cameras, this difference is in it. <code>fundusgen release</code> "
            "leaves out the weights that do not draw; hospitals and server have them.</p>"
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
    kinds = {"real": "real", "synthetic": "generated"}
    dots = [
        dot
        for figure in whole
        for dot in _dots(
            f"{_REGIMES[figure['regime']]}, {_classifier(figure)}",
            figure["estimate"],
            kinds.get(figure["regime"], "other"),
        )
    ]
    mark = _GUESSING.get(score)
    parts = [head, wide(dot_plot(dots, f"{title}: {score}", _SCORES[score], mark=mark))]
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
        estimate = figure["estimate"]
        on_curve = figure["share"] and figure["regime"] in ("real", "real_and_synthetic")
        if on_curve and known(estimate):
            point = (100 * figure["share"], *(estimate[key] for key in ("value", "low", "high")))
            of = by_classifier.setdefault(figure["classifier"], {})
            of.setdefault(_REGIMES[figure["regime"]], []).append(point)
    for classifier, curves in by_classifier.items():
        if all(len(curve) > 1 for curve in curves.values()):
            ordered = {name: sorted(curve) for name, curve in curves.items()}
            kinds = {_REGIMES["real"]: "real", _REGIMES["real_and_synthetic"]: "other"}
            yield wide(curve_plot(
                ordered, kinds, f"{title} by share of training patients",
                f"% of the training patients, {classifier.replace('_', ' ')}", _SCORES[score],
            ))  # fmt: skip


def _classifier(figure: Values) -> str:
    return str(figure["classifier"]).replace("_", " ")


def _verdict(figure: Values) -> str:
    change = figure["change"]
    if not known(change):
        return ""
    word = "helps" if change["low"] > 0 else "harms" if change["high"] < 0 else "cannot tell"
    return f"{word}: {change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"


def _quartiles(quantiles: list[float | None]) -> str:
    low, middle, high = quantiles[1:4]
    if low is None or middle is None or high is None:
        return "-"
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _attack_table(leak: Values) -> str:
    rows = [
        [
            one["attack"]["name"],
            with_interval(one["attack"]["auc"]),
            with_interval(one["control"] and one["control"]["auc"]),
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
            _number(of["test"]["c_t"], 2),
            _number(of["mirrored"]["c_t"], 2),
            *(
                f"{with_interval(of[which]['share'])}, p {_number(of[which]['p_value'], 3)}"
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


def _dots(label: str, estimate: Values | None, kind: str, scale: float = 1.0) -> list[Dot]:
    """Give the dot of an estimate; none of what could not be computed."""
    if not known(estimate):
        return []
    value, low, high = (scale * estimate[key] for key in ("value", "low", "high"))
    return [Dot(label, value, low, high, kind)]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _texts(header: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are text."""
    return table(header, rows).replace('class="n"', "")
