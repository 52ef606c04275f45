"""From the content of one image file to its framed pixels.

Joins intake and framing, so that a JPEG is decoded no larger than needed and never smaller.
"""

from fundusgen.data.framing import Pixels, find_field_of_view, frame_image
from fundusgen.data.intake import decode_bytes


def prepare_image(content: bytes, size_px: int) -> Pixels:
    """Decode and frame one image.

    The field of view of the decoded image has at least `size_px` pixels across wherever the file
    itself has: where a reduced scale turns out too small, a larger one is taken.

    Args:
        content: The image file's bytes.
        size_px: Side of the square.

    Returns:
        RGB, uint8, (size_px, size_px, 3), black outside of the circle.

    Raises:
        ImageError: If the file cannot be read as an image or shows no field of view.
    """
    target_px = size_px
    image_HWC = decode_bytes(content, target_px)
    field = find_field_of_view(image_HWC)
    while 2 * min(field.radius, field.radius_y) < size_px:
        target_px *= 2
        larger_HWC = decode_bytes(content, target_px)
        if larger_HWC.shape[0] <= image_HWC.shape[0]:
            # Twice the target always moves a reduced JPEG on, so this is its full size.
            break
        image_HWC = larger_HWC
        field = find_field_of_view(image_HWC)
    return frame_image(image_HWC, size_px, field)
