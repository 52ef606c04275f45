"""A contact sheet of phantoms: a row for each condition, a column for each camera."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fundusgen.phantom.camera import CAMERA_STYLES
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.patients import EYES, draw_patient
from fundusgen.phantom.render import render


def phantom_sheet(
    size_px: int,
    seed: int,
    *,
    conditions: Sequence[str] = PHANTOM_CONDITIONS,
    camera_styles: Sequence[str] = tuple(CAMERA_STYLES),
    repeats: int = 1,
) -> NDArray[np.uint8]:
    """Draw a sheet; every picture is of another patient, right and left eyes take turns.

    Args:
        size_px: Side of one picture.
        seed: The same seed gives the same sheet.
        conditions: One row each.
        camera_styles: `repeats` columns each.
        repeats: Pictures of each condition and camera.

    Returns:
        (rows * size_px, columns * size_px, 3) uint8.

    Raises:
        DataError: Unknown condition or style, negative seed, a size out of range.
    """
    columns = [style for style in camera_styles for _ in range(repeats)]
    rows = []
    for row, condition in enumerate(conditions):
        pictures = []
        for column, style in enumerate(columns):
            patient = draw_patient(seed, row * len(columns) + column, {condition: 1.0}, style)
            eye = EYES[(row + column) % 2]
            # The fellow eye may be free of disease; the sheet shows the one that is not.
            if patient.eyes[eye].condition != condition:
                eye = EYES[(row + column + 1) % 2]
            pictures.append(render(patient.eyes[eye], size_px))
        rows.append(np.concatenate(pictures, axis=1))
    return np.concatenate(rows, axis=0)
