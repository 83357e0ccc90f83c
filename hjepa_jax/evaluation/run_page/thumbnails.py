"""Small images inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from hjepa_jax.evaluation.page.text import escape

# Up to this side, images are stored exactly, and enlarged without smoothing.
_EXACT = 48
# Others are reduced to this side, twice that of their place on the page.
_SIDE = 128


def thumbnail(image: np.ndarray, caption: str, kind: str = "", note: str = "") -> str:
    """Returns an image with a caption, as HTML.

    Args:
      image: uint8 [H, W, 3].
      caption: text below it; may be empty.
      kind: further CSS classes.
      note: text shown before the caption, such as a check mark.
    """
    picture, content = Image.fromarray(np.asarray(image)), io.BytesIO()
    if max(picture.size) <= _EXACT:
        picture.save(content, "PNG")
        form, small = "png", ' class="small"'
    else:
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(content, "JPEG", quality=85)
        form, small = "jpeg", ""
    data = base64.b64encode(content.getvalue()).decode("ascii")
    shown = f"{note} {caption}" if note else caption
    classes = f"thumb {kind}".strip()
    return (
        f'<div class="{classes}"><img{small} alt="{escape(caption or "image")}" '
        f'src="data:image/{form};base64,{data}">{escape(shown)}</div>'
    )
