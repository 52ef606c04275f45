"""Plain drawings that stand for photographs, shared by the tests of this folder."""

import io

import numpy as np
from PIL import Image


def drawn_fundus(
    width: int = 320,
    height: int = 256,
    center: tuple[float, float] = (160.0, 128.0),
    radius: float = 100.0,
    stretch: float = 1.0,
    light: float = 200.0,
    background: float = 2.0,
) -> np.ndarray:
    """A textured disc on a dark ground, uint8, (height, width, 3)."""
    y, x = np.mgrid[:height, :width] + 0.5
    distance = np.hypot(x - center[0], (y - center[1]) / stretch)
    coverage = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    texture = 0.75 + 0.25 * np.sin(x / 9) * np.cos(y / 7)
    colour = texture[..., None] * np.array([1.0, 0.55, 0.3]) * light
    return np.round(coverage * colour + (1 - coverage) * background).astype(np.uint8)


def encoded(image_HWC: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, kind, **options)
    return stream.getvalue()
