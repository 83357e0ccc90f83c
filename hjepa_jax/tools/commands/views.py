"""Write a contact sheet of the augmented views that a configuration makes.

hjepa views --config=cifar100 --config.data.root=DATA --out=views.png
"""

from __future__ import annotations

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_file, local_path

PROGRAM = Program("views", __doc__, required=("config",))
_FLAGS = PROGRAM.flags
_CONFIG = define_config(None, "What to show.", values=_FLAGS)
_OUT = flags.DEFINE_string("out", "views.png", "PNG file to write.", flag_values=_FLAGS)
_IMAGES = flags.DEFINE_integer("images", 12, "Images to show.", lower_bound=1, flag_values=_FLAGS)
_STEP = flags.DEFINE_integer(
    "step", 0, "Training step whose batch is shown.", lower_bound=0, flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Makes the views of a batch and writes them."""
    del argv
    out = local_path(_OUT.value, "--out")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out={out} must end in .png.")
    check_writable_file(out, "--out")
    from PIL import Image

    from hjepa_jax.data.contact_sheet import contact_sheet
    from hjepa_jax.data.pipeline import train_batches
    from hjepa_jax.data.sources.open import open_source
    from hjepa_jax.training.automatic.resolved import resolved

    # The host makes the same views as the device.
    settings = resolved(_CONFIG.value).replace({"data.backend": "host"})
    data, seed = settings.data, settings.seed
    try:
        source = open_source(settings, settings.data.train_split)
        with train_batches(data, seed, source, start_step=_STEP.value, num_steps=1) as stream:
            sheet = contact_sheet(next(stream), _IMAGES.value)
        Image.fromarray(sheet).save(out)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"{source.description}: {sheet.shape[1]}x{sheet.shape[0]} pixels in {out}")


def run() -> None:
    """Entry point of `hjepa views`."""
    PROGRAM.run(main)
