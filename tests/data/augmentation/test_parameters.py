"""Drawn augmentation parameters have torchvision's distributions."""

import math
import random

import numpy as np
import pytest
from image_files import data_config
from scipy import stats

from hjepa_jax.data import counter_random
from hjepa_jax.data.augmentation import parameters
from hjepa_jax.data.counter_random import Stream

KEY = counter_random.stream_key(5, Stream.AUGMENTATION, 0)


def draw(count: int = 30000, height=375, width=500, scale=(0.3, 1.0), **augment):
    config = data_config().data.augment
    config.update(augment)
    return parameters.draw_parameters(
        config, scale, key=KEY, index=np.arange(count), view=0, height=height, width=width
    )


def torchvision_crop(generator, height: int, width: int, scale, ratio) -> tuple[int, ...]:
    """RandomResizedCrop.get_params, from its documentation: ten tries, then a centered crop."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.randint(0, height - h), generator.randint(0, width - w), h, w
    if width / height < ratio[0]:
        h, w = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.3, 1.0)), (375, 500, (0.4, 1.0)), (375, 500, (0.05, 0.4)), (500, 180, (0.4, 1.0))],
)
def test_crops_follow_the_reference_algorithm(height, width, scale) -> None:
    drawn = draw(8000, height, width, scale)
    generator = random.Random(0)
    expected = np.array(
        [torchvision_crop(generator, height, width, scale, (3 / 4, 4 / 3)) for _ in range(8000)]
    )
    ours = np.stack([drawn.top, drawn.left, drawn.height, drawn.width], axis=1)
    assert ours.min() >= 0
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for values in (
        (ours[:, 2] * ours[:, 3], expected[:, 2] * expected[:, 3]),
        (ours[:, 3] / ours[:, 2], expected[:, 3] / expected[:, 2]),
        (ours[:, 0], expected[:, 0]),
        (ours[:, 1], expected[:, 1]),
    ):
        assert stats.ks_2samp(*values).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_no_fitting_crop_gives_the_centered_one(height, width) -> None:
    drawn = draw(50, height, width, (1.0, 1.0))
    expected = torchvision_crop(random.Random(0), height, width, (1.0, 1.0), (3 / 4, 4 / 3))
    ours = np.stack([drawn.top, drawn.left, drawn.height, drawn.width], axis=1)
    assert (ours == np.array(expected)).all()


def test_flags_have_their_probabilities() -> None:
    drawn = draw()
    for flag, probability in (
        (drawn.flip, 0.5),
        (drawn.jitter, 0.8),
        (drawn.gray, 0.2),
        (drawn.sigma > 0, 0.5),
        (drawn.solarize, 0.2),
    ):
        error = math.sqrt(probability * (1 - probability) / len(flag))
        assert abs(flag.mean() - probability) < 4 * error
    never = draw(100, flip_probability=0.0, blur_probability=0.0)
    assert not never.flip.any()
    assert not never.sigma.any()
    assert draw(100, gray_probability=1.0).gray.all()


def test_factors_are_uniform_where_jitter_is_applied() -> None:
    drawn = draw()
    for values, low, high, neutral in (
        (drawn.brightness, 0.6, 1.4, 1.0),
        (drawn.contrast, 0.6, 1.4, 1.0),
        (drawn.saturation, 0.8, 1.2, 1.0),
        (drawn.hue, -0.1, 0.1, 0.0),
    ):
        assert stats.kstest(values[drawn.jitter], "uniform", (low, high - low)).pvalue > 1e-3
        assert (values[~drawn.jitter] == neutral).all()
    sigma = drawn.sigma[drawn.sigma > 0]
    assert stats.kstest(sigma, "uniform", (0.1, 1.9)).pvalue > 1e-3
    # A strength above one must not give negative factors.
    assert draw(2000, brightness=1.5).brightness.min() >= 0


def test_orders_are_uniform_permutations() -> None:
    order = draw().order
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    _, counts = np.unique(order @ (10 ** np.arange(4)), return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_view_depends_on_its_own_coordinates_alone() -> None:
    config = data_config().data.augment
    index, view = np.repeat(np.arange(6), 2), np.tile([0, 1], 6)
    whole = parameters.draw_parameters(
        config, (0.3, 1.0), key=KEY, index=index, view=view, height=32, width=32
    )
    alone = parameters.draw_parameters(
        config, (0.3, 1.0), key=KEY, index=[4], view=[1], height=[32], width=[32]
    )
    for one, several in zip(alone, whole):
        np.testing.assert_array_equal(one[0], several[9])
    assert len({float(value) for value in whole.brightness + whole.top * 10}) > 6


def test_packing_is_exact() -> None:
    drawn = draw(200)
    columns = parameters.unpack_views(parameters.pack_views(drawn))
    for name, values in drawn._asdict().items():
        if name == "order":
            got = np.stack([columns[f"order_{i}"] for i in range(4)], axis=1)
        else:
            got = columns[name]
        np.testing.assert_array_equal(got.astype(values.dtype), values)
