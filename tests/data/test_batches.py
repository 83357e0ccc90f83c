"""A batch is the same whether its images are read together or one by one."""

import numpy as np
import pytest
from image_files import OneByOne, data_config, photo

from hjepa_jax.config.checks import typed
from hjepa_jax.data.batches import BatchMaker
from hjepa_jax.data.sources.base import ArraySource
from hjepa_jax.data.sources.derived import hold_out, stored_images, subset


def stored(side: int = 32) -> ArraySource:
    images = np.stack([photo(seed, side, side + 4) for seed in range(30)])
    return ArraySource("test", images, np.arange(30) % 7, list("abcdefg"))


@pytest.mark.parametrize("backend", ["host", "device"])
@pytest.mark.parametrize("side", [32, 80])
def test_stored_images_make_the_batches_of_images_read_one_by_one(backend, side) -> None:
    fields = dict(backend=backend, image_size=24, num_local_views=2, local_size=12)
    settings = typed(data_config(**fields))
    source = subset(hold_out(stored(side), 4, 1)[0], 22, 3)
    together, singly = (
        BatchMaker(settings.data, 7, kind, process_index=1, process_count=2)
        for kind in (source, OneByOne(source))
    )
    for step in (0, 5):
        one, other = together(step)[0], singly(step)[0]
        # Only images known to have one shape are cropped on the device.
        shared = set(one) & set(other)
        assert {"index", "label", *(set(one) - {"images"})} <= shared
        for name in shared:
            np.testing.assert_array_equal(one[name], other[name])
        records = [source.record(int(index)) for index in one["index"]]
        assert one["label"].tolist() == [record.label for record in records]
        assert one["index"].dtype == one["label"].dtype == np.int32
        if backend == "device":
            np.testing.assert_array_equal(one["images"], [record.image for record in records])


def test_stored_images_are_those_of_the_records() -> None:
    source = stored()
    for part in (source, subset(source, 20, 3), subset(hold_out(source, 4, 1)[0], 22, 3)):
        found, indices = stored_images(part), np.array([5, 0, 19, 5])
        assert found is not None
        assert found.shape == (32, 36, 3)
        records = [part.record(int(index)) for index in indices]
        np.testing.assert_array_equal(found.take(indices), [record.image for record in records])
        assert found.labels[indices].tolist() == [record.label for record in records]
    assert stored_images(OneByOne(source)) is None

    class Own(ArraySource):
        def record(self, index: int):
            return super().record(index)._replace(label=0)

    assert stored_images(Own("own", source.images, source.labels(), list("abcdefg"))) is None
