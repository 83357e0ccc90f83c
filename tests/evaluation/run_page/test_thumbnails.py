"""Thumbnails: small images are exact, large ones small files."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from hjepa_jax.evaluation.run_page.thumbnails import thumbnail


def _decoded(text: str) -> Image.Image:
    data = re.search('src="data:image/[a-z]+;base64,(.*?)"', text)[1]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_small_image_is_stored_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    text = thumbnail(image, "a <b>", "same", "✓")
    np.testing.assert_array_equal(np.asarray(_decoded(text)), image)
    assert text.startswith('<div class="thumb same"><img class="small" alt="a &lt;b&gt;"')
    assert text.endswith(">✓ a &lt;b&gt;</div>")


@pytest.mark.parametrize(("shape", "size"), [((512, 256), (64, 128)), ((96, 96), (96, 96))])
def test_a_large_image_is_reduced(shape, size) -> None:
    image = np.full((*shape, 3), (200, 100, 50), np.uint8)
    text = thumbnail(image, "x")
    decoded = _decoded(text)
    assert decoded.size == size
    assert np.abs(np.asarray(decoded).astype(int) - [200, 100, 50]).max() <= 3
    assert len(text) < 3000
    assert text.startswith('<div class="thumb"><img alt')
