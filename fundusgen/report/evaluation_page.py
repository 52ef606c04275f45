"""`evaluation.html`: an evaluation as clinicians read it: sentences, then pictures, then numbers.

One file, no network, no script. It shows generated images and phantoms only; photographs stay on
the pages of the folder that does not leave the site (`closest_pairs`).
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from PIL import Image

from fundusgen.evaluation.evaluation import Evaluated
from fundusgen.evaluation.images import ImageSet
from fundusgen.report.evaluation_answers import (
    anatomy_section,
    diversity_section,
    leakage_section,
    realism_section,
    usefulness_section,
)
from fundusgen.report.evaluation_values import (
    Values,
    evaluation_values,
    finds_members,
    sentences,
)
from fundusgen.report.html import picture, whole_page
from fundusgen.report.pictures import contact_sheet
from fundusgen.storage import write_atomically, write_json

PAGE, VALUES = "evaluation.html", "evaluation.json"
_COLUMNS = 8


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
        usefulness_section(values),
        realism_section(values),
        diversity_section(values),
        anatomy_section(values),
        leakage_section(values),
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
