"""Sheets and film strips of generated images."""

import numpy as np
from PIL import Image

from fundusgen.report.pictures import contact_sheet, film_strip


def sheet(level: int) -> Image.Image:
    """Two conditions, three pictures each; the first of a row has the level that is asked for."""
    images = np.full((2, 3, 32, 32, 3), 7, np.uint8)
    images[0, 0], images[1, 0] = level, level + 1
    return contact_sheet({"normal": images[0], "amd": images[1]})


def test_a_film_shows_the_first_picture_of_each_row_over_the_rounds() -> None:
    film = film_strip({"1": sheet(50), "40": sheet(150)}, rows=2, columns=3)
    pixels = np.asarray(film)
    cell = sheet(50).height // 2
    label_px = sheet(50).width - 3 * cell
    assert pixels.shape == (24 + 2 * cell, label_px + 2 * cell, 3)
    found = [
        [int(pixels[24 + row * cell + 9, label_px + column * cell + 9, 0]) for column in (0, 1)]
        for row in (0, 1)
    ]
    assert found == [[50, 150], [51, 151]]


def test_labels_and_rounds_are_written_on_a_film() -> None:
    film = np.asarray(film_strip({"1": sheet(50)}, rows=2, columns=3))
    bare = np.asarray(film_strip({"": sheet(50)}, rows=2, columns=3))
    assert (film[:24] != bare[:24]).any()
    assert (film[24:] == bare[24:]).all()
