"""Contact sheets: the views of a batch as one image, showing what the network sees."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

# The entries of a batch that are views.
VIEWS = ("global_views", "local_views")
_GAP = 2
_BACKGROUND = 255


def _scaled(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST))


def contact_sheet(
    batch: Mapping[str, npt.NDArray], max_images: int = 16, side: int | None = None
) -> npt.NDArray[np.uint8]:
    """Returns an image with one row per source image and one column per view, 'image' first.

    Args:
      batch: a batch of `train_batches` ('global_views', perhaps 'local_views'), or of
        `eval_batches` ('image'), or both.
      max_images: maximum number of rows.
      side: side of each tile in pixels; None = that of the first view, but at least 64.

    Returns:
      uint8 [height, width, 3].

    Raises:
      ValueError: if the batch has no views, or `max_images` is not positive.
    """
    if max_images < 1:
        raise ValueError(f"A contact sheet needs at least one image, not {max_images}.")
    views: list[npt.NDArray[np.uint8]] = []
    if "image" in batch:
        views.append(np.asarray(batch["image"]))
    for name in VIEWS:
        if name in batch:
            views += [np.asarray(view) for view in batch[name]]
    if not views or len(views[0]) == 0:
        raise ValueError("A contact sheet needs a batch with global_views, local_views or image.")
    side = max(64, views[0].shape[1]) if side is None else side
    rows = min(max_images, len(views[0]))
    sheet = np.full(
        (rows * (side + _GAP) + _GAP, len(views) * (side + _GAP) + _GAP, 3), _BACKGROUND, np.uint8
    )
    for row in range(rows):
        for column, view in enumerate(views):
            top, left = _GAP + row * (side + _GAP), _GAP + column * (side + _GAP)
            sheet[top : top + side, left : left + side] = _scaled(view[row], side)
    return sheet
