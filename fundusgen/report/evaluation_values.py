"""`evaluation.json`: everything that an evaluation found, for programs, and in sentences.

format         "fundusgen-evaluation-1"
made_at        UTC, ISO 8601
made_by        version of fundusgen
the fields of `fundusgen.evaluation.evaluation.Evaluation`, with each estimate as
{value, low, high}: the value and its 95 % interval. What could not be computed is null.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from fundusgen import __version__
from fundusgen.evaluation.evaluation import Evaluation
from fundusgen.report.plain import plain

FORMAT = "fundusgen-evaluation-1"
# KID is small; this is how papers print it.
KID_SCALE = 1000
# Of one test in some ten.
_COPYING_P = 0.002
Values = Mapping[str, Any]


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """Give an evaluation as plain JSON values; the module's docstring lists the keys."""
    return {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": __version__,
        **plain(evaluation),
    }


def sentences(values: Values) -> Iterator[str]:
    """What an evaluation found, most important first, as a clinician would want it said."""
    yield from _useful(values)
    yield from _real(values)
    yield from _varied(values)
    yield from _leaking(values)
    yield from _by_weights(values)
    yield from values["remarks"]


def with_interval(
    estimate: Values | None, scale: float = 1.0, digits: int = 2, *, share: bool = False
) -> str:
    """An estimate with its interval as text; a dash for what there is not.

    Args:
        estimate: Value and interval.
        scale: Multiplies all three.
        digits: After the point.
        share: It is one, and its interval is shown within 0 and 1, which a bootstrap may leave.
    """
    if not known(estimate):
        return "-"
    value, low, high = (scale * estimate[key] for key in ("value", "low", "high"))
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def known(estimate: Values | None) -> TypeGuard[Values]:
    """Whether there is an estimate and all of it could be computed."""
    return estimate is not None and None not in (
        estimate["value"], estimate["low"], estimate["high"]
    )  # fmt: skip


def figures_of(values: Values, **wanted: object) -> list[Values]:
    """The figures of usefulness that have all these fields."""
    useful = values["usefulness"]
    return [
        figure
        for figure in (useful["figures"] if useful else [])
        if all(figure[key] == value for key, value in wanted.items())
    ]


def strongest_attack(values: Values) -> Values | None:
    """The attack by generated images that tells members apart best, with its control."""
    attacks = [
        one for leak in values["leakage"] for one in leak["attacks"] if known(one["attack"]["auc"])
    ]
    return max(attacks, key=lambda one: float(one["attack"]["auc"]["value"]), default=None)


def finds_members(attack: Values) -> bool:
    """Whether an attack does better than guessing, and than phantoms in its place do."""
    found = attack["attack"]["auc"]
    control = attack["control"] and attack["control"]["auc"]
    bar = max(0.5, control["high"]) if known(control) else 0.5
    return known(found) and bool(found["low"] > bar)


def copies(leak: Values) -> bool:
    """Whether generated images are nearer to training patients than chance and phantoms explain."""
    return any(
        _is_unlikely(leak["copying"][which]) and not _is_unlikely(leak["copying_control"][which])
        for which in ("share", "closest_share")
    )


def _is_unlikely(share: Values) -> bool:
    return share["p_value"] is not None and share["p_value"] < _COPYING_P


def _useful(values: Values) -> Iterator[str]:
    alone = figures_of(values, regime="synthetic", score="auc")
    first = next((figure for figure in alone if known(figure["estimate"])), None)
    if first is None:
        return
    what = task_title(first["task"])
    estimate = with_interval(first["estimate"])
    yield (
        f"A classifier that learned from generated images alone recognises {what} in photographs "
        f"with an AUC of {estimate}; guessing is 0.50" + _beside(values, first) + "."
    )
    added = figures_of(values, regime="real_and_synthetic", task=first["task"],
                       classifier=first["classifier"], score="auc")  # fmt: skip
    if added:
        most = max(added, key=lambda figure: float(figure["share"]))
        least = min(added, key=lambda figure: float(figure["share"]))
        said = [f"{_change(most)} beside all {most['training']['real_patients']:,} training "
                "patients"]  # fmt: skip
        if least["share"] < most["share"]:
            said.append(f"{_change(least)} beside {least['training']['real_patients']:,} of them")
        yield f"Added to real photographs, generated images {' and '.join(said)}."


def _beside(values: Values, figure: Values) -> str:
    real = figures_of(values, regime="real", share=1.0, task=figure["task"],
                      classifier=figure["classifier"], score=figure["score"])  # fmt: skip
    return f", real photographs give {with_interval(real[0]['estimate'])}" if real else ""


def _change(figure: Values) -> str:
    change = figure["change"]
    verdict = "change nothing that could be told"
    if not known(change):
        return verdict
    if change["low"] > 0:
        verdict = "help"
    elif change["high"] < 0:
        verdict = "harm"
    return f"{verdict} ({change['value']:+.3f} AUC, {change['low']:+.3f} to {change['high']:+.3f})"


def _real(values: Values) -> Iterator[str]:
    if not values["realism"]:
        return
    first = values["realism"][0]
    rows = first["rows"]["overall"]
    drawn, phantoms, real = (
        rows[name]["kid"] if name in rows else None for name in ("generated", "phantoms", "real")
    )
    if not known(drawn) or not known(phantoms):
        return
    if drawn["high"] < phantoms["low"]:
        verdict = "nearer to photographs than raw phantoms are"
    elif drawn["low"] > phantoms["high"]:
        verdict = "further from photographs than raw phantoms are"
    else:
        verdict = "about as far from photographs as raw phantoms are"
    said = (
        f"They are {verdict}: KID x1000 by the features `{first['extractor']}` is "
        f"{with_interval(drawn, KID_SCALE, 0)} against {with_interval(phantoms, KID_SCALE, 0)}"
    )
    if known(real):
        said += f"; other photographs stand at {with_interval(real, KID_SCALE, 0)}"
    yield f"{said}."


def _varied(values: Values) -> Iterator[str]:
    varied = values["diversity"]
    if varied and known(varied["generated"]["vendi"]) and known(varied["real"]["vendi"]):
        drawn, real = varied["generated"], varied["real"]
        yield (
            f"They vary as {drawn['vendi']['value']:.1f} entirely different images would; as many "
            f"photographs as {real['vendi']['value']:.1f} (Vendi score of {drawn['images']:,})."
        )


def _leaking(values: Values) -> Iterator[str]:
    if any(copies(leak) for leak in values["leakage"]):
        yield (
            "Generated images lie nearer to patients who were trained on than to others, more "
            "than chance explains: they may be copies. Look at the closest pairs at the site, and "
            "do not release this generator."
        )
    strongest = strongest_attack(values)
    if strongest is None:
        return
    found = [one for leak in values["leakage"] for one in leak["attacks"] if finds_members(one)]
    auc = with_interval(strongest["attack"]["auc"])
    name = strongest["attack"]["name"]
    if found:
        yield (
            f"Patients who were trained on can be told from others by the generated images: the "
            f"attack `{name}` has an AUC of {auc}. Do not release this generator."
        )
    elif _differ(strongest):
        yield (
            "Whether patients who were trained on can be told from others is not known: the "
            f"attack `{name}` has an AUC of {auc}, and with phantoms, which know nobody, "
            f"{with_interval(strongest['control']['auc'])}. Test and training patients differ, "
            "say by their cameras; divide the patients of one hospital at random."
        )
    else:
        yield (
            "No attack told patients who were trained on from others by the generated images "
            f"(the best, `{name}`, has an AUC of {auc}; guessing is 0.50"
            + (
                f", and the same attack with phantoms, which know nobody, has "
                f"{with_interval(strongest['control']['auc'])}"
                if strongest["control"]
                else ""
            )
            + "). Only epsilon bounds what other attacks could learn."
        )


def _differ(attack: Values) -> bool:
    """Whether the two sets of patients can be told apart by phantoms, too."""
    found, control = attack["attack"]["auc"], attack["control"] and attack["control"]["auc"]
    return bool(known(found) and known(control) and min(found["low"], control["low"]) > 0.5)


def _by_weights(values: Values) -> Iterator[str]:
    own = values["model_attack"]
    if own and known(own["auc"]):
        found = own["auc"]["low"] > 0.5
        told = "can be told from others, or differ from them" if found else "were not told apart"
        yield (
            f"By all weights of the model, patients who were trained on {told}: the attack "
            f"`{own['name']}` has an AUC of {with_interval(own['auc'])}. `fundusgen release` "
            "leaves out the weights that do not draw; hospitals and server have them."
        )


def task_title(task: str) -> str:
    """What a task is called in sentences."""
    return {
        "referable": "referable diabetic retinopathy (grade 2 and up)",
        "grade": "the grade of diabetic retinopathy",
        "rare": "the rarest condition",
    }.get(task, task)
