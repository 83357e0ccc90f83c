"""Images per second and core of the input pipeline, beside torchvision's where it is installed.

    python benchmarks/input_pipeline.py --sizes 32 224 --local-views 0 6
    python benchmarks/input_pipeline.py --training configs/quickstart.py --steps 44

Both sides read the same images, with the same operations and probabilities, in one thread, in turn
(interleaved), and are timed in CPU seconds, so that other load on the machine matters little.
At 32 px the images are arrays in memory; above, JPEG files of 500x375 pixels.

With --training, a real run of that configuration is made instead, and the share of its wall time
that it waited for data is printed.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# One core is measured: no library may use more threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.data import batches
from hjepa_jax.data.sources import folder
from hjepa_jax.data.sources.base import ArraySource, ImageSource, decode
from hjepa_jax.storage.metrics_file import read_metrics

PHOTO = (500, 375)


def synthetic_photo(random: np.random.Generator) -> Image.Image:
    """Returns an image with structure at all scales, so that its JPEG is about 110 kB."""
    total = np.zeros((PHOTO[1], PHOTO[0], 3), np.float32)
    for side, weight in ((4, 60), (16, 40), (64, 25), (256, 12), (1024, 7)):
        noise = random.normal(size=(side * 3 // 4, side, 3)) * weight
        layer = [
            Image.fromarray(noise[..., channel].astype(np.float32)).resize(PHOTO)
            for channel in range(3)
        ]
        total += np.stack([np.asarray(plane) for plane in layer], axis=-1)
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def make_source(size: int, count: int, root: str) -> ImageSource:
    """Returns `count` images: 32x32 arrays for small sizes, else JPEG files below `root`."""
    random = np.random.default_rng(0)
    if size <= 64:
        small = [synthetic_photo(random).resize((size, size)) for _ in range(min(count, 64))]
        images = np.stack([np.asarray(small[i % len(small)]) for i in range(count)])
        return ArraySource("synthetic", images, np.zeros(count, int), ["class"])
    class_folder = os.path.join(root, "train", "class")
    os.makedirs(class_folder)
    for number in range(count):
        buffer = io.BytesIO()
        synthetic_photo(random).save(buffer, "JPEG", quality=95)
        with open(os.path.join(class_folder, f"{number:05d}.jpg"), "wb") as file:
            file.write(buffer.getvalue())
    return folder.open_root(root, "train", 0.0)


def make_config(size: int, local_size: int, local_views: int, batch_size: int) -> Any:
    """Returns the published augmentation for this size."""
    config: Any = base_config()
    small = size <= 64
    config.data.update(
        batch_size=batch_size,
        image_size=size,
        num_local_views=local_views,
        local_size=local_size,
        global_scale=(0.3, 1.0) if small else (0.4, 1.0),
        local_scale=(0.05, 0.3) if small else (0.05, 0.4),
    )
    config.data.augment.blur_kernel = 3 if small else 23
    return config


def torch_views(config: Any) -> list[Any]:
    """Returns torchvision's transform of each view; raises ImportError without torchvision."""
    import torch  # pyright: ignore[reportMissingImports]
    from torchvision import transforms  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    augment = config.data.augment

    def view(size: int, scale: tuple[float, float]) -> Any:
        jitter = transforms.ColorJitter(
            augment.brightness, augment.contrast, augment.saturation, augment.hue
        )
        blur = transforms.GaussianBlur(augment.blur_kernel, augment.blur_sigma)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale, augment.crop_aspect),
                transforms.RandomHorizontalFlip(augment.flip_probability),
                transforms.RandomApply([jitter], augment.jitter_probability),
                transforms.RandomGrayscale(augment.gray_probability),
                transforms.RandomApply([blur], augment.blur_probability),
                transforms.RandomSolarize(augment.solarize_threshold, augment.solarize_probability),
                transforms.PILToTensor(),
            ]
        )

    data = config.data
    return [view(data.image_size, data.global_scale)] * data.num_global_views + [
        view(data.local_size, data.local_scale)
    ] * data.num_local_views


def torch_epoch(config: Any, source: ImageSource) -> Callable[[], None]:
    """Returns a function that makes one epoch of batches with a DataLoader."""
    import torch  # pyright: ignore[reportMissingImports]

    views = torch_views(config)

    class Views(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            record = source.record(index)
            if record.encoded is None:
                image = Image.fromarray(decode(record))
            else:
                image = Image.open(io.BytesIO(record.encoded)).convert("RGB")
            return (*(view(image) for view in views), record.label, index)

    loader = torch.utils.data.DataLoader(
        Views(), config.data.batch_size, shuffle=True, drop_last=True
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def our_epoch(config: Any, source: ImageSource) -> Callable[[], None]:
    """Returns a function that makes one epoch of batches in this thread."""
    settings = typed(config)
    make = batches.BatchMaker(settings.data, settings.seed, source)

    def run() -> None:
        for step in range(len(source) // config.data.batch_size):
            make(step)

    return run


def cpu_seconds(run: Callable[[], None]) -> float:
    """Returns the CPU time of all threads of this process during a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def training_wait(config_file: str, overrides: list[str], steps: int) -> None:
    """Trains for `steps` steps as the command line does and prints the share of time in waiting.

    The first log interval, which compiles and fills the buffers, is left out.
    """
    with tempfile.TemporaryDirectory() as root:
        workdir = pathlib.Path(root, "run")
        command = [sys.executable, "-m", "hjepa_jax.main", f"--config={config_file}"]
        command += [f"--workdir={workdir}", "--mode=train", f"--config.train.max_steps={steps}"]
        command += [f"--config.{override}" for override in overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        curves = read_metrics(workdir)
    shares, rates = (curves[name][1][1:] for name in ("data/wait_share", "speed/images_per_second"))
    if not len(shares):
        sys.exit(f"{steps} steps give one log line only: ask for more with --steps.")
    print(
        f"{config_file}: waited for data {statistics.mean(shares):.2%} of the time "
        f"(at most {max(shares):.2%} of a log interval) at {statistics.median(rates):.1f} images/s"
    )


def main() -> None:
    """Measures every combination and prints a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--local-views", type=int, nargs="+", default=[0, 6])
    parser.add_argument("--local-size", type=int, help="default: the global size")
    parser.add_argument("--images", type=int, help="default: 2048 at 32 px, 64 above")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--training", help="configuration file of a real run to measure instead")
    parser.add_argument("--steps", type=int, default=44, help="of the run of --training")
    parser.add_argument(
        "--override", action="append", default=[], help="section.field=value of --training"
    )
    options = parser.parse_args()
    if options.training:
        training_wait(options.training, options.override, options.steps)
        return
    compare_sides(options)


def compare_sides(options: argparse.Namespace) -> None:
    """Prints a line for every size and number of local views."""
    try:
        import torchvision  # pyright: ignore[reportMissingImports]

        print(f"torchvision {torchvision.__version__} is measured beside ours.")
        compare = True
    except ImportError:
        print("torchvision is not installed: ours alone is measured, no ratio.")
        compare = False
    for size in options.sizes:
        count = options.images or (2048 if size <= 64 else 64)
        with tempfile.TemporaryDirectory() as root:
            source = make_source(size, count, root)
            for local_views in options.local_views:
                config = make_config(size, options.local_size or size, local_views, min(count, 256))
                images = count - count % config.data.batch_size
                sides = {"hjepa_jax": our_epoch(config, source)}
                if compare:
                    sides["torchvision"] = torch_epoch(config, source)
                seconds: dict[str, list[float]] = {name: [] for name in sides}
                for _ in range(options.repeats):
                    for name, run in sides.items():
                        seconds[name].append(cpu_seconds(run))
                rates = {name: images / statistics.median(s) for name, s in seconds.items()}
                text = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
                ratio = (
                    f", ratio {rates['hjepa_jax'] / rates['torchvision']:.2f}" if compare else ""
                )
                print(f"{size} px, 2+{local_views} views: images/s/core {text}{ratio}", flush=True)


if __name__ == "__main__":
    main()
