"""The sections `data` and `data.augment`: images, views and the input pipeline."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hjepa_jax.config.fields import FREE, Condition, field, section

_LOCAL = Condition(lambda c: c.data.num_local_views > 0, "config.data.num_local_views above 0")
_FILES = Condition(
    lambda c: c.data.name != "digits", "config.data.name to the dataset that it holds"
)
_FOLDER = Condition(lambda c: c.data.name == "folder", "config.data.name='folder'")
_SHARE = {"at_least": 0.0, "at_most": 1.0}
_SCALE_0_1 = "it applies to images scaled to 0..1, so divide by 255"


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of each view."""

    crop_aspect: tuple[float, float] = field(
        (3 / 4, 4 / 3),
        "Range of the crop's aspect ratio (width / height).",
        above=0,
        at_most=100,
        ordered=True,
    )
    flip_probability: float = field(
        0.5, "Probability of a horizontal flip.", **_SHARE, aliases="flip hflip horizontal_flip"
    )
    jitter_probability: float = field(
        0.8, "Probability of color jitter.", **_SHARE, aliases="color_jitter jitter"
    )
    brightness: float = field(0.4, "Largest relative change of brightness.", at_least=0, at_most=10)
    contrast: float = field(0.4, "Largest relative change of contrast.", at_least=0, at_most=10)
    saturation: float = field(0.2, "Largest relative change of saturation.", at_least=0, at_most=10)
    hue: float = field(
        0.1, "Largest rotation of the hue, as a fraction of a full turn.", at_least=0, at_most=0.5
    )
    gray_probability: float = field(
        0.2,
        "Probability of conversion to grayscale.",
        **_SHARE,
        aliases="gray grayscale random_grayscale",
    )
    blur_probability: float = field(
        0.5, "Probability of Gaussian blur.", **_SHARE, aliases="blur gaussian_blur"
    )
    blur_kernel: int = field(
        3, "Size of the Gaussian kernel in pixels.", above=0, at_most=255, odd=True, auto=True
    )
    blur_sigma: tuple[float, float] = field(
        (0.1, 2.0),
        "Range of the Gaussian's sigma in pixels.",
        at_least=0.01,
        at_most=100,
        ordered=True,
    )
    solarize_probability: float = field(
        0.2, "Probability of solarization.", **_SHARE, aliases="solarize solarization"
    )
    solarize_threshold: int = field(
        128,
        "Pixel value (0..255) from which solarization inverts.",
        at_least=0,
        at_most=255,
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """Images, views and the input pipeline."""

    name: str = field(
        "digits",
        "'digits' (embedded), 'cifar10', 'cifar100', 'stl10', 'imagenette', 'hf:OWNER/NAME', "
        "'folder', 'tfds:NAME', or a class of your own, 'module.path:Class'.",
        aliases="dataset dataset_name data_name",
    )
    root: str | None = field(
        None,
        "Folder or archive that holds the data; None = the cache, for data that is downloaded by "
        "name. Not used by 'digits'.",
        used=_FILES,
        resume=FREE,
        own=True,
        aliases="path dir folder data_dir data_root data_path dataset_dir train_dir image_dir",
    )
    download: bool = field(
        False,
        "Download 'cifar10', 'cifar100', 'stl10', 'imagenette' or 'hf:OWNER/NAME' to the cache if "
        "it is not there (HJEPA_DATA, or ~/.cache/hjepa_jax/data).",
        resume=FREE,
        own=True,
        aliases="auto_download",
    )
    labels: str = field(
        "auto",
        "Where the labels of 'folder' come from: 'folders' (named after classes), 'none', a CSV "
        "file of file names and labels, or 'auto' (folders, if they look like classes).",
        used=_FOLDER,
        resume=FREE,
    )
    train_split: str = field("train", "Split used for self-supervised training.")
    test_split: str = field(
        "test",
        "Test set of the evaluation.",
        resume=FREE,
        aliases="val_split validation_split eval_split",
    )
    test_holdout: int | None = field(
        None,
        "Images to hold out of the training split as the test set, drawn by the seed and, if "
        "labeled, stratified by class; None = the test set is test_split.",
        above=0,
        auto=True,
    )
    max_train_images: int | None = field(
        None,
        "Use only the first N images of a seeded shuffle of the split; None = all.",
        above=0,
        aliases="max_images num_train_images subset",
    )
    max_test_images: int | None = field(None, "The same for the test set.", above=0, resume=FREE)
    batch_size: int = field(
        512,
        "Images per step over all devices and processes.",
        above=0,
        auto=True,
        aliases="batch bs global_batch_size train_batch_size",
    )
    drop_last: bool = field(
        True,
        "Leave out the images of an epoch that do not fill a batch; False = they are a smaller "
        "last batch, for which the step is compiled once more.",
    )
    num_global_views: int = field(
        2,
        "Global crops of each image.",
        above=0,
        at_most=256,
        aliases="global_crops num_global_crops num_crops num_views n_views views",
    )
    num_local_views: int = field(
        0,
        "Local crops of each image.",
        at_least=0,
        at_most=256,
        aliases="local_crops num_local_crops num_small_crops",
    )
    image_size: int = field(
        32,
        "Side in pixels of the square global crops.",
        above=0,
        at_most=2048,
        auto=True,
        aliases="crop_size resolution size img_size input_size crop",
    )
    local_size: int = field(
        32,
        "Side in pixels of the square local crops.",
        above=0,
        at_most=2048,
        used=_LOCAL,
        aliases="local_crop_size",
    )
    global_scale: tuple[float, float] = field(
        (0.3, 1.0),
        "Range of a global crop's area as a fraction of the image.",
        above=0,
        at_most=1,
        ordered=True,
        too_large="a crop cannot be larger than the image (1.0)",
        aliases="scale crop_scale global_crops_scale",
    )
    local_scale: tuple[float, float] = field(
        (0.05, 0.3),
        "Range of a local crop's area as a fraction of the image.",
        above=0,
        at_most=1,
        ordered=True,
        too_large="a crop cannot be larger than the image (1.0)",
        used=_LOCAL,
        aliases="local_crops_scale",
    )
    num_workers: int = field(
        0,
        "Worker processes of the input pipeline; 0 = threads in this process.",
        at_least=0,
        at_most=1024,
        resume=FREE,
        own=True,
        auto=True,
        aliases="workers n_workers num_loader_workers",
    )
    num_threads: int = field(
        2,
        "Loading and augmentation threads per process.",
        above=0,
        at_most=1024,
        resume=FREE,
        own=True,
        aliases="threads",
    )
    prefetch_batches: int = field(
        4, "Batches prefetched on the host.", above=0, at_most=1024, resume=FREE, own=True
    )
    device_prefetch: int = field(
        2, "Batches prefetched to the device.", above=0, at_most=1024, resume=FREE, own=True
    )
    cache_mb: int = field(
        2048,
        "Cache for encoded images of file-based data, in MiB per process; 0 = no cache.",
        at_least=0,
        at_most=2**24,
        resume=FREE,
        own=True,
    )
    backend: Literal["auto", "host", "device"] = field(
        "auto",
        "Where the augmentation runs; the random parameters are the same. 'auto' = on the device "
        "if it is an accelerator, and as before in a resumed run.",
    )
    resident_mb: int = field(
        1024,
        "With the augmentation on the device, all images stay there if they are held in memory at "
        "one size (CIFAR, digits) and take at most this many MiB: their numbers and the drawn "
        "parameters alone are sent. 0 = send the images of each batch.",
        at_least=0,
        at_most=2**24,
        resume=FREE,
    )
    on_corrupt: Literal["error", "skip"] = field(
        "error",
        "On a corrupt image: 'skip' (another image takes its place) or stop with an 'error'.",
    )
    mean: tuple[float, float, float] = field(
        (0.5071, 0.4867, 0.4408),
        "Mean of each channel of images scaled to 0..1.",
        at_least=0,
        at_most=1,
        too_large=_SCALE_0_1,
        auto=True,
    )
    std: tuple[float, float, float] = field(
        (0.2675, 0.2565, 0.2761),
        "Standard deviation of each channel of images scaled to 0..1.",
        at_least=0.001,
        at_most=1,
        too_large=_SCALE_0_1,
        auto=True,
    )
    eval_resize: int | None = field(
        None,
        "Evaluation: short side before the center crop of image_size; None = image_size.",
        above=0,
        at_most=4096,
        resume=FREE,
    )
    augment: Augment = section(Augment, "Random changes of each view.")
