"""The page that stays at the site: generated images beside the photographs nearest to them.

For the eyes of someone who may see the photographs: a figure can be low where a single image is a
copy that any person would recognise.
"""

from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fundusgen.evaluation.evaluation import Evaluated
from fundusgen.report.html import picture, whole_page
from fundusgen.storage import write_atomically

_CELL_PX = 192


def write_closest_pairs(path: Path, made: Evaluated) -> None:
    """Write the page, readable by its owner only.

    Raises:
        OSError: It cannot be written.
    """
    found, train = made.material, made.material.train
    if train is None:
        raise ValueError("without training photographs there are no pairs")
    rows = []
    for pair in made.closest:
        images = (
            found.mixed.images_NSSC[pair.generated],
            train.images_NSSC[pair.train],
            found.real.images_NSSC[pair.held_out],
        )
        says = (
            f"distance {pair.train_distance:.3f} to the training photograph, "
            f"{pair.held_out_distance:.3f} to the other"
        )
        rows.append(f"<figure>{picture(_row(images), says)}<figcaption>{escape(says)}</figcaption>")
    write_atomically(
        path,
        whole_page(
            "Closest pairs",
            '<h1>Closest pairs</h1><section class="verdict bad"><strong>This page shows '
            "photographs of patients and does not leave the site.</strong><p>Each row: a generated "
            "image, the nearest photograph that was trained on, the nearest one that was not. A "
            "copy looks like its neighbour on the left and not like the one on the right.</p>"
            "</section>"
            f"<section>{'</figure>'.join(rows)}</figure></section>",
        ),
        mode=0o600,
    )


def _row(images: tuple[NDArray[np.uint8], ...]) -> Image.Image:
    row = Image.new("RGB", (len(images) * (_CELL_PX + 6), _CELL_PX), (255, 255, 255))
    for place, image_SSC in enumerate(images):
        cell = Image.fromarray(image_SSC).resize((_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC)
        row.paste(cell, (place * (_CELL_PX + 6), 0))
    return row
