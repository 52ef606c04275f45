"""Where the retina lies in a picture: from degrees on the retina to pixels."""

from dataclasses import dataclass

from fundusgen.phantom.exact import Floats


@dataclass(frozen=True)
class View:
    """Where the retina lies in the picture.

    Attributes:
        size_px: Side of the picture.
        px_per_deg: Scale.
        mirror: 1 where nasal is to the right (right eyes), -1 for left eyes.
        centre_deg: Point of the retina in the middle of the picture.
    """

    size_px: int
    px_per_deg: float
    mirror: float
    centre_deg: tuple[float, float]

    def to_px(self, points_deg: Floats) -> tuple[Floats, Floats]:
        """Return x and y in pixels, 0 at the outer edge of the first pixel."""
        middle = self.size_px / 2
        x = (points_deg[..., 0] - self.centre_deg[0]) * (self.px_per_deg * self.mirror) + middle
        y = (points_deg[..., 1] - self.centre_deg[1]) * self.px_per_deg + middle
        return x, y
