"""Placing batches ahead, and measuring the wait for data."""

import numpy as np
import pytest
from image_files import photo

from hjepa_jax.data.contact_sheet import contact_sheet
from hjepa_jax.data.prefetch import WaitTimer, device_prefetch


@pytest.mark.parametrize("size", [0, 1, 3, 20])
def test_prefetch_keeps_the_order_and_works_ahead(size) -> None:
    placed = []

    def put(element: int) -> int:
        placed.append(element)
        return element * 10

    stream = device_prefetch(iter(range(7)), put, size)
    assert placed == []
    assert next(stream) == 0
    assert len(placed) == min(7, size + 1)
    assert list(stream) == [10, 20, 30, 40, 50, 60]
    with pytest.raises(ValueError, match="0 or more, not -1"):
        device_prefetch(iter([]), put, -1)


def test_prefetch_passes_errors_on() -> None:
    def failing():
        yield 1
        raise RuntimeError("broken")

    stream = device_prefetch(failing(), lambda x: x, 0)
    assert next(stream) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)


def test_timer_counts_the_wait_and_not_the_work() -> None:
    now = [0.0]

    def slow():
        for _ in range(3):
            now[0] += 2.0
            yield now[0]

    timer = WaitTimer(clock=lambda: now[0])
    for _ in timer.measure(slow()):
        now[0] += 5.0
    assert timer.take() == 6.0
    assert timer.take() == 0.0


def test_contact_sheet_shows_a_row_per_image() -> None:
    images = np.stack([photo(seed, 64, 64) for seed in range(5)])
    batch = {
        "global_views": np.stack([images, images[:, :, ::-1]]),
        "local_views": images[None, :, :32, :32],
    }
    sheet = contact_sheet(batch, max_images=3)
    assert sheet.shape == (3 * 66 + 2, 3 * 66 + 2, 3)
    np.testing.assert_array_equal(sheet[68 : 68 + 64, 2:66], images[1])
    np.testing.assert_array_equal(sheet[68 : 68 + 64, 68 : 68 + 64], images[1][:, ::-1])
    assert (sheet[:2] == 255).all()
    # The smaller local view is enlarged to the same tile.
    np.testing.assert_array_equal(sheet[2:66:2, 134:198:2], images[0][:32, :32])
    assert contact_sheet({"image": images}, 10).shape == (5 * 66 + 2, 68, 3)
    assert contact_sheet({"image": images}, 1, side=16).shape == (20, 20, 3)
    with pytest.raises(ValueError, match="needs a batch"):
        contact_sheet({"label": np.zeros(3)})
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet(batch, 0)
