"""Host augmentation against Pillow, an independent implementation of the same operations."""

import numpy as np
import pytest
from image_files import data_config, photo
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from hjepa_jax.data import counter_random
from hjepa_jax.data.augmentation import color, host, parameters, resize
from hjepa_jax.data.augmentation.parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION
from hjepa_jax.data.counter_random import Stream

AUGMENT = data_config().data.augment


def difference(ours, reference) -> np.ndarray:
    return np.abs(np.asarray(ours, np.float64) - np.asarray(reference, np.float64))


def draw(count: int, height: int, width: int, seed: int = 0, scale=(0.1, 1.0)):
    key = counter_random.stream_key(seed, Stream.AUGMENTATION)
    return parameters.draw_parameters(
        AUGMENT, scale, key=key, index=np.arange(count), view=0, height=height, width=width
    )


def planes_of(images: list[np.ndarray]) -> np.ndarray:
    return np.stack(images).transpose(3, 0, 1, 2).astype(np.float32)


def images_of(planes: np.ndarray) -> np.ndarray:
    return np.clip(planes, 0, 255).transpose(1, 2, 3, 0)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 64, 24), (9, 50, 32)])
def test_small_crop_and_resize_matches_pillow(height, width, size) -> None:
    images = [photo(seed, height, width) for seed in range(40)]
    drawn = draw(40, height, width)
    planes = resize.crop_resize_flip(images, np.arange(40), drawn, size)
    for view, image in enumerate(images):
        left, top = drawn.left[view], drawn.top[view]
        box = (left, top, left + drawn.width[view], top + drawn.height[view])
        expected = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR)
        if drawn.flip[view]:
            expected = ImageOps.mirror(expected)
        # Pillow rounds to 8 bits between the two passes as well.
        assert difference(images_of(planes)[view], expected).max() <= 1.01


def test_large_images_take_the_same_crops(monkeypatch) -> None:
    images = [photo(seed, 50, 60) for seed in range(10)]
    drawn = draw(10, 50, 60)
    small = resize.crop_resize_flip(images, np.arange(10), drawn, 28)
    monkeypatch.setattr(resize, "SMALL_SIDE", 8)
    large = resize.crop_resize_flip(images, np.arange(10), drawn, 28)
    assert difference(small, large).max() <= 1.01


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.3, 2.0])
@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (color.adjust_brightness, ImageEnhance.Brightness),
        (color.adjust_contrast, ImageEnhance.Contrast),
        (color.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_enhancements_match_pillow(adjust, enhance, factor) -> None:
    images = [photo(seed) for seed in range(6)]
    planes = planes_of(images)
    adjust(planes, np.full(6, factor, np.float32))
    for ours, image in zip(images_of(planes), images):
        expected = enhance(Image.fromarray(image)).enhance(factor)
        # Pillow rounds the gray value it blends with, and truncates the result.
        assert difference(ours, expected).max() <= 1.01 + 0.5 * abs(1 - factor)


def pillow_hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, np.int16) + round(shift * 256)) % 256
    bands = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", bands).convert("RGB")


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.03, 0.25])
def test_hue_matches_pillow(shift) -> None:
    shift = round(shift * 256) / 256
    images = [photo(seed) for seed in range(6)]
    planes = planes_of(images)
    color.adjust_hue(planes, np.full(6, shift, np.float32))
    for ours, image in zip(images_of(planes), images):
        error = difference(ours, pillow_hue(Image.fromarray(image), shift))
        # Pillow keeps hue and saturation in 8 bits, worth some levels of saturated colors.
        assert error.mean() < 1.5
        assert np.percentile(error, 99) <= 6


def test_hue_by_a_third_permutes_the_channels() -> None:
    image = photo(0)
    planes = planes_of([image])
    color.adjust_hue(planes, np.array([1 / 3], np.float32))
    assert difference(images_of(planes)[0], image[..., [2, 0, 1]]).max() < 0.01


def test_gray_matches_pillow() -> None:
    images = [photo(0), photo(1)]
    planes = planes_of(images)
    color.to_gray(planes, np.array([False, True]))
    assert difference(images_of(planes)[0], images[0]).max() == 0
    expected = np.asarray(Image.fromarray(images[1]).convert("L"))[..., None]
    assert difference(images_of(planes)[1], expected).max() <= 0.51


@pytest.mark.parametrize("kernel", [3, 5])
def test_blur_matches_pillow_inside(kernel) -> None:
    image, sigma = photo(0), 0.8
    planes = planes_of([image])
    color.gaussian_blur(planes, np.array([sigma], np.float32), kernel)
    offset = np.arange(kernel) - kernel // 2
    taps = np.exp(-0.5 * (offset / sigma) ** 2)
    weights = np.outer(taps, taps)
    expected = Image.fromarray(image).filter(
        ImageFilter.Kernel((kernel, kernel), weights.ravel().tolist(), weights.sum())
    )
    inside = slice(kernel // 2, -(kernel // 2))
    assert difference(images_of(planes)[0], expected)[inside, inside].max() <= 0.51


@pytest.mark.parametrize("kernel", [3, 23])
def test_blur_matches_scipy_with_reflected_borders(kernel) -> None:
    images = [photo(seed) for seed in range(5)]
    sigma = np.array([0.1, 0.0, 0.7, 1.4, 2.0], np.float32)
    planes = planes_of(images)
    color.gaussian_blur(planes, sigma, kernel)
    offset = np.arange(kernel) - kernel // 2
    for ours, image, width in zip(images_of(planes), images, sigma):
        expected = image.astype(np.float64)
        if width > 0:
            taps = np.exp(-0.5 * (offset / float(width)) ** 2)
            for axis in (0, 1):
                expected = ndimage.correlate1d(expected, taps / taps.sum(), axis, mode="mirror")
        assert difference(ours, expected).max() < 0.05


def test_solarize_matches_pillow_exactly() -> None:
    images = [photo(0), photo(1)]
    views = color.to_uint8(planes_of(images), np.array([True, False]), 128)
    np.testing.assert_array_equal(views[0], ImageOps.solarize(Image.fromarray(images[0]), 128))
    np.testing.assert_array_equal(views[1], images[1])


def test_jitter_applies_each_view_in_its_own_order() -> None:
    orders = [
        [BRIGHTNESS, CONTRAST, SATURATION, HUE],
        [HUE, SATURATION, CONTRAST, BRIGHTNESS],
        [CONTRAST, HUE, BRIGHTNESS, SATURATION],
    ]
    images = [photo(0)] * 3
    drawn = draw(3, 40, 48)._replace(
        jitter=np.array([True, True, False]), order=np.array(orders, np.int8)
    )
    amounts = {BRIGHTNESS: 1.4, CONTRAST: 1.3, SATURATION: 0.5, HUE: 0.2}
    names = {BRIGHTNESS: "brightness", CONTRAST: "contrast", SATURATION: "saturation", HUE: "hue"}
    drawn = drawn._replace(
        **{names[op]: np.full(3, amount, np.float32) for op, amount in amounts.items()}
    )
    planes = planes_of(images)
    color.color_jitter(planes, drawn)
    for view, order in enumerate(orders[:2]):
        expected = planes_of(images[:1])
        for operation in order:
            getattr(color, f"adjust_{names[operation]}")(
                expected, np.array([amounts[operation]], np.float32)
            )
        assert difference(planes[:, view], expected[:, 0]).max() < 1e-3
    assert difference(planes[:, 0], planes[:, 1]).mean() > 1
    np.testing.assert_array_equal(images_of(planes)[2], images[2])


def pillow_view(image: np.ndarray, p, view: int, size: int) -> np.ndarray:
    """The whole augmentation with Pillow, in the documented order."""
    left, top = p.left[view], p.top[view]
    box = (left, top, left + p.width[view], top + p.height[view])
    made = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR)
    made = ImageOps.mirror(made) if p.flip[view] else made
    if p.jitter[view]:
        for operation in p.order[view]:
            if operation == HUE:
                made = pillow_hue(made, float(p.hue[view]))
            else:
                enhance, factor = {
                    BRIGHTNESS: (ImageEnhance.Brightness, p.brightness[view]),
                    CONTRAST: (ImageEnhance.Contrast, p.contrast[view]),
                    SATURATION: (ImageEnhance.Color, p.saturation[view]),
                }[int(operation)]
                made = enhance(made).enhance(float(factor))
    made = made.convert("L").convert("RGB") if p.gray[view] else made
    if p.sigma[view] > 0:
        taps = np.exp(-0.5 * (np.arange(-1, 2) / float(p.sigma[view])) ** 2)
        pixels = np.asarray(made, np.float64)
        for axis in (0, 1):
            pixels = ndimage.correlate1d(pixels, taps / taps.sum(), axis, mode="mirror")
        made = Image.fromarray(np.rint(pixels).astype(np.uint8))
    return np.asarray(ImageOps.solarize(made, 128) if p.solarize[view] else made)


def test_whole_augmentation_matches_pillow() -> None:
    images = [photo(seed, 32, 32) for seed in range(60)]
    drawn = draw(60, 32, 32, seed=1)
    views = host.apply(images, np.arange(60), drawn, 32, AUGMENT)
    assert views.shape == (60, 32, 32, 3)
    assert views.dtype == np.uint8
    for view, image in enumerate(images):
        expected = pillow_view(image, drawn, view, 32)
        if drawn.solarize[view]:
            # A level more or less at the threshold inverts a pixel: fold the inversion away.
            ours, expected = (np.minimum(v, 255 - v) for v in (views[view], expected))
            assert np.median(difference(ours, expected)) <= 2
        else:
            assert difference(views[view], expected).mean() < 2.0


def test_views_do_not_depend_on_their_company() -> None:
    images = [photo(seed, 32, 32) for seed in range(70)] + [photo(70, 80, 90)]
    source = np.arange(71)
    drawn = draw(71, 32, 32)
    whole = host.apply(images, source, drawn, 32, AUGMENT)
    for view in (0, 33, 69, 70):
        alone = host.apply([images[view]], np.zeros(1, int), drawn.take([view]), 32, AUGMENT)
        np.testing.assert_array_equal(alone[0], whole[view])


@pytest.mark.parametrize(("height", "width"), [(40, 48), (48, 40), (20, 90)])
def test_eval_image_resizes_the_short_side_and_crops_the_center(height, width) -> None:
    image = photo(0, height, width)
    made = host.eval_image(image, 24, 28)
    short = min(height, width)
    size = (round(width * 28 / short), round(height * 28 / short))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - 24) / 2, (size[1] - 24) / 2
    expected = resized.crop((round(left), round(top), round(left) + 24, round(top) + 24))
    assert made.shape == (24, 24, 3)
    assert difference(made, expected).mean() < 8


def test_eval_image_leaves_the_right_size_alone_and_refuses_small_resizes() -> None:
    image = photo(0, 32, 32)
    np.testing.assert_array_equal(host.eval_image(image, 32, None), image)
    assert host.eval_image(photo(0, 50, 70), 32, None).shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"eval_resize 24 is smaller than data\.image_size 32"):
        host.eval_image(image, 32, 24)
