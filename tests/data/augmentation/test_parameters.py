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


def one_view(augment, scale, index: int, view: int, height: int, width: int) -> dict[str, float]:
    """The parameters of one view in plain Python, number by number from its own counters."""
    drawn = [float(counter_random.uniforms(KEY, index, view, slot)[0]) for slot in range(54)]
    flip, jitter, gray, blur, sigma, solarize = drawn[:6]
    jittered = jitter < augment.jitter_probability

    def factor(number: int, strength: float) -> float:
        low = max(0.0, 1 - strength)
        return low + (1 + strength - low) * drawn[10 + number] if jittered else 1.0

    low, high = augment.blur_sigma
    order = sorted(range(4), key=lambda place: drawn[6 + place])
    found = {
        "flip": flip < augment.flip_probability,
        "jitter": jittered,
        "brightness": factor(0, augment.brightness),
        "contrast": factor(1, augment.contrast),
        "saturation": factor(2, augment.saturation),
        "hue": augment.hue * (2 * drawn[13] - 1) if jittered else 0.0,
        "gray": gray < augment.gray_probability,
        "sigma": low + (high - low) * sigma if blur < augment.blur_probability else 0.0,
        "solarize": solarize < augment.solarize_probability,
        **{f"order_{place}": operation for place, operation in enumerate(order)},
    }
    narrow, wide = augment.crop_aspect
    for attempt in range(10):
        area, aspect, down, right = drawn[14 + attempt :: 10]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * aspect)
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = math.floor(down * (height - rows + 1))
            left = math.floor(right * (width - columns + 1))
            return found | {"top": top, "left": left, "height": rows, "width": columns}
    shape = width / height
    columns = max(1, round(height * wide)) if shape > wide else width
    rows = max(1, round(width / narrow)) if shape < narrow else height
    top, left = (height - rows) // 2, (width - columns) // 2
    return found | {"top": top, "left": left, "height": rows, "width": columns}


@pytest.mark.parametrize("scale", [(0.3, 1.0), (0.05, 0.3), (0.9, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize(
    "augment",
    [
        {},
        {"crop_aspect": (0.2, 5.0), "flip_probability": 1.0, "solarize_probability": 0.7},
        {"brightness": 2.0, "contrast": 0.0, "saturation": 1.0, "hue": 0.5},
        {"jitter_probability": 0.0, "gray_probability": 1.0, "blur_sigma": (1.0, 1.0)},
        {"blur_probability": 1.0, "jitter_probability": 1.0},
    ],
)
def test_drawn_together_views_are_as_each_drawn_alone(scale, augment) -> None:
    """In batches of thumbnails, photographs, and images too thin for any crop that is tried."""
    sizes = np.array([(32, 32), (375, 500), (500, 180), (10, 1000), (1000, 10), (1, 1)] * 8)
    index, view = np.arange(48) * 977, np.where(np.arange(48) % 3, 1, 1 << 16)
    config = data_config().data.augment
    config.update(augment)
    drawn = parameters.draw_parameters(
        config, scale, key=KEY, index=index, view=view, height=sizes[:, 0], width=sizes[:, 1]
    )
    packed = parameters.pack_views(drawn)
    for number, (height, width) in enumerate(sizes.tolist()):
        alone = one_view(config, scale, int(index[number]), int(view[number]), height, width)
        assert set(alone) == set(parameters.PACKED)
        wanted = [np.float32(alone[name]) for name in parameters.PACKED]
        np.testing.assert_array_equal(packed[number], wanted, err_msg=f"{number}")


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
