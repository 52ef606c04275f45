"""Sheets of generated images: a row a condition."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fundusgen.models.generator import Generator
from fundusgen.storage import replacing

_GAP_PX, _BACKGROUND, _INK = 2, (18, 18, 20), (225, 225, 225)
_SMALLEST_CELL_PX = 96


def draw_sheet(generator: Generator, columns: int, seed: int) -> Image.Image:
    """Draw `columns` images of every condition, a row each."""
    rows = {
        str(condition): np.concatenate(
            [drawn.images_NSSC for drawn in generator.draw(condition, columns, seed)]
        )
        for condition in generator.study.conditions
    }
    return contact_sheet(rows)


def contact_sheet(rows: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """Lay images out in labelled rows; small images are enlarged without smoothing.

    Args:
        rows: For each label, (N, S, S, 3) uint8 RGB; all of one S.
    """
    size = next(iter(rows.values())).shape[1]
    cell = size * max(1, round(_SMALLEST_CELL_PX / size))
    font = ImageFont.load_default(size=14)
    label_px = 12 + max(int(font.getlength(label)) for label in rows)
    columns = max(len(images) for images in rows.values())
    step = cell + _GAP_PX
    sheet = Image.new("RGB", (label_px + columns * step, len(rows) * step), _BACKGROUND)
    ink = ImageDraw.Draw(sheet)
    for row, (label, images_NSSC) in enumerate(rows.items()):
        ink.text((6, row * step + cell // 2 - 8), label, fill=_INK, font=font)
        for column, image_SSC in enumerate(images_NSSC):
            picture = Image.fromarray(image_SSC).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(picture, (label_px + column * step, row * step))
    return sheet


def film_strip(sheets: Mapping[str, Image.Image], rows: int, columns: int) -> Image.Image:
    """Lay the first pictures of contact sheets side by side: what became of them over time.

    Args:
        sheets: From `contact_sheet`, all of the same layout, by what to write above each.
        rows: Rows of each sheet.
        columns: Columns of each sheet.
    """
    first = next(iter(sheets.values()))
    step = first.height // rows
    label_px, header_px = first.width - columns * step, 24
    film = Image.new("RGB", (label_px + len(sheets) * step, header_px + first.height), _BACKGROUND)
    film.paste(first.crop((0, 0, label_px, first.height)), (0, header_px))
    ink, font = ImageDraw.Draw(film), ImageFont.load_default(size=14)
    for place, (label, sheet) in enumerate(sheets.items()):
        left = label_px + place * step
        ink.text((left + 4, 4), label, fill=_INK, font=font)
        film.paste(sheet.crop((label_px, 0, label_px + step, sheet.height)), (left, header_px))
    return film


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
