"""A trained encoder: module, variables and preprocessing, to encode images and to fine-tune."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import hjepa_jax
from hjepa_jax.config import Settings
from hjepa_jax.config.settings import MatmulPrecision
from hjepa_jax.data.augmentation.host import eval_image
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.features import Batch, extract_features, select_state_part
from hjepa_jax.models.base import Encoder
from hjepa_jax.pretrained import hub
from hjepa_jax.pretrained import images as inputs
from hjepa_jax.pretrained.card import Facts, card, check_license
from hjepa_jax.runtime import sharding
from hjepa_jax.storage.files import local_path
from hjepa_jax.training.encoding.batch import Parts
from hjepa_jax.training.encoding.views import normalize
from hjepa_jax.training.prepare import jit_frozen_encoder


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the encoder sees it.

    Attributes:
      image_size: side S of the encoder's images in pixels.
      resize: length of the short side before the center crop.
      mean, std: of each channel of images scaled to 0..1.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, settings: Settings) -> Preprocessing:
        """Returns the preprocessing of a run's evaluation."""
        data = settings.data
        return cls(data.image_size, data.eval_resize or data.image_size, data.mean, data.std)


class TrainedEncoder:
    """An encoder with its variables and its preprocessing.

    Attributes:
      module: the Flax module; `module.apply(variables, inputs, train=False)` returns states.
      variables: its {'params', 'batch_stats'}.
      preprocessing: sizes and normalization of its images.
      split_qp: whether states are [q | p].
      origin: how it came about.
      batch_size: images per pass; fewer are padded, so that it compiles once.
      matmul_precision: of its products in float32, see `config.runtime`.
    """

    def __init__(
        self,
        module: Encoder,
        variables: Parts,
        preprocessing: Preprocessing,
        origin: hub.Origin,
        mesh: Mesh,
        *,
        split_qp: bool,
        batch_size: int,
        matmul_precision: MatmulPrecision = "default",
    ):
        """Takes the parts of an encoder, and the devices that it runs on."""
        self.module, self.variables, self.origin = module, variables, origin
        self.preprocessing, self.split_qp = preprocessing, split_qp
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.matmul_precision: MatmulPrecision = matmul_precision
        self._mesh = mesh
        mean, std = preprocessing.mean, preprocessing.std
        self._frozen = jit_frozen_encoder(module, mean, std, matmul_precision, mesh)

    def __repr__(self) -> str:
        size = self.preprocessing.image_size
        return f"TrainedEncoder({type(self.module).__name__}, image_size={size}, dim={self.dim})"

    @property
    def dim(self) -> int:
        """The dimension D of a state."""
        return self.module.shape(self.preprocessing.image_size).dim

    def encode(
        self,
        images: inputs.Images,
        *,
        state_part: str = "qp",
        value_range: tuple[float, float] | None = None,
        progress: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Encodes images as the evaluation does: short side resized, center crop, normalized.

        One image gives its state [D]: a PIL image, the path of an image file, or an array [H, W]
        or [H, W, C]. Whatever can hold several gives [N, D], in order: an array [N, H, W, C], the
        path of a folder (all images in and below it, sorted by path), or a list, iterator or
        generator of images, folders, or lists of them. Iterators are read a batch at a time.

        Images may have any size. They become 8-bit RGB as in training: gray is repeated, alpha is
        dropped, EXIF orientation is applied. uint8 values are taken as they are and floats must be
        from 0 to 1; all others need `value_range`.

        Args:
          images: see above; arrays of any library have 1, 3 or 4 channels, which come last.
          state_part: 'q', 'p' or 'qp' (all).
          value_range: the values that become 0 and 255, for floats outside 0..1, and for integers
            and image files of more than 8 bits; values outside saturate.
          progress: whether to show a progress bar on stderr.

        Returns:
          The states float32 [D] or [N, D]; [q | p] if `split_qp`.

        Raises:
          UserError: if there are no images, an item is none or has values that cannot be mapped
            (the message names it), or features are not finite.
          ConfigError: if the state part is unknown, or the encoder has no q and p.
        """
        select_state_part(np.zeros((0, 2), np.float32), state_part, self.split_qp)
        batches = self._batches(images, value_range)
        if progress:
            batches = _shown(batches, inputs.known_count(images))
        states = extract_features(self.encode_batch, batches).features
        states = select_state_part(states, state_part, self.split_qp)
        return states[0] if inputs.is_one(images) else states

    def encode_batch(self, images: np.ndarray) -> jax.Array:
        """Returns the states [N, D] of uint8 images [N, S, S, 3], N divisible by the devices."""
        return self._frozen(self.variables, sharding.put_whole(self._mesh, "image", images))

    def crop(
        self, images: inputs.Images, *, value_range: tuple[float, float] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns images as uint8 [N, S, S, 3], resized and cropped; arguments as `encode`."""
        crops = [batch["image"][batch["mask"]] for batch in self._batches(images, value_range)]
        return np.concatenate(crops)

    def normalize(self, images: npt.NDArray[np.uint8] | jax.Array) -> jax.Array:
        """Returns the module's inputs [N, S, S, 3] from `crop`'s; may be called inside a jit."""
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return normalize(jax.numpy.asarray(images), mean, std, self.module.dtype)

    def replace(self, variables: Parts) -> TrainedEncoder:
        """Returns this encoder with other variables, such as fine-tuned ones."""
        return TrainedEncoder(
            self.module,
            variables,
            self.preprocessing,
            dataclasses.replace(self.origin, fine_tuned=True),
            self._mesh,
            split_qp=self.split_qp,
            batch_size=self.batch_size,
            matmul_precision=self.matmul_precision,
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        overwrite: bool = False,
        evaluations: Sequence[Mapping[str, Any]] = (),
    ) -> pathlib.Path:
        """Writes the encoder in the layout of the Hugging Face hub; `from_pretrained` reads it.

        Writes `model.safetensors`, `config.json`, `preprocessor_config.json`, and the model card
        `README.md`. Upload the folder with a client of your own.

        Args:
          folder: the folder, which may have other files.
          license: identifier for the card, such as 'apache-2.0'; None = not stated.
          overwrite: whether to replace these files if they exist.
          evaluations: contents of `metrics.json` of its evaluations, for the card.

        Returns:
          The folder.

        Raises:
          UserError: if the folder has such a file, is a run's workdir, or cannot be written, or the
            license is no identifier.
        """
        path = local_path(folder, "folder")
        check_license(license)
        hub.check_target(path, overwrite=overwrite)
        facts = Facts(
            name=path.absolute().name,
            architecture=type(self.module).__name__,
            parameters=sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables["params"])),
            dim=self.dim,
            split_qp=self.split_qp,
            image_size=self.preprocessing.image_size,
            settings=self.origin.values(),
            step=self.origin.step,
            num_images=self.origin.num_images,
            fine_tuned=self.origin.fine_tuned,
            imported=self.origin.imported,
            version=hjepa_jax.__version__,
        )
        text = card(facts, license, evaluations)
        hub.write(path, self.module, self.variables, self.origin, text, self.dim)
        return path

    def _batches(
        self, images: inputs.Images, value_range: tuple[float, float] | None
    ) -> Iterator[Batch]:
        """Yields batches of `batch_size` prepared images, the last one padded."""
        inputs.check_range(value_range)
        size, resize = self.preprocessing.image_size, self.preprocessing.resize

        def prepare(item: inputs.Item) -> npt.NDArray[np.uint8]:
            return eval_image(inputs.decoded(item, value_range), size, resize)

        remaining = inputs.items(images, value_range)
        count = 0
        with ThreadPoolExecutor() as pool:
            while taken := list(itertools.islice(remaining, self.batch_size)):
                batch = np.zeros((self.batch_size, size, size, 3), np.uint8)
                for row, image in enumerate(pool.map(prepare, taken)):
                    batch[row] = image
                count += len(taken)
                yield {
                    "image": batch,
                    "label": np.zeros(self.batch_size, np.int32),
                    "mask": np.arange(self.batch_size) < len(taken),
                }
        if not count:
            raise UserError("There are no images to encode: pass at least one.")


def from_pretrained(folder: str | os.PathLike[str], *, batch_size: int = 64) -> TrainedEncoder:
    """Reads an encoder that `save_pretrained` wrote; its states are the same bit for bit.

    Args:
      folder: the folder, as downloaded from the Hugging Face hub for example. None of its content
        is executed: an encoder of your own needs its module imported first.
      batch_size: images per pass; fewer are padded, so that it compiles once.

    Raises:
      CheckpointError: if the folder is missing, has another kind of model, or is damaged.
      UserError: if the batch size is below 1.
    """
    check_batch_size(batch_size)
    module, variables, settings, origin = hub.read(local_path(folder, "folder"))
    mesh = sharding.local_mesh()
    return TrainedEncoder(
        module,
        jax.device_put(variables, sharding.replicated(mesh)),
        Preprocessing.of(settings),
        origin,
        mesh,
        split_qp=settings.model.split_qp,
        batch_size=batch_size,
        matmul_precision=settings.runtime.matmul_precision,
    )


def check_batch_size(batch_size: int) -> None:
    """Raises UserError if a batch size is below 1."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")


def _shown(batches: Iterable[Batch], total: int | None) -> Iterator[Batch]:
    """Yields the batches, and shows how many images they had."""
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=total)
        for batch in batches:
            yield batch
            bar.advance(task, int(np.count_nonzero(batch["mask"])))
