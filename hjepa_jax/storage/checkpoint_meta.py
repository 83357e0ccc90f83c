"""What stands beside the arrays of a checkpoint: position in the data, and configuration."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from hjepa_jax.storage.schema import Fields, Items, Text, Truth, Whole


class DataPosition(TypedDict, total=False):
    """Where a run is in its data; an imported checkpoint knows its step alone.

    Attributes:
      step: optimizer steps done.
      skipped: numbers of the batches left out.
      seed: of the order of the images.
      fingerprint: of the training images.
      num_images: in the training split.
      batch_size: images per step.
      drop_last: whether an epoch has full batches alone; True if absent.
      imported: name of the file of other software that the encoder's weights are from.
    """

    step: int
    skipped: list[int]
    seed: int
    fingerprint: str
    num_images: int
    batch_size: int
    drop_last: bool
    imported: str


class Meta(TypedDict):
    """The `meta` of a checkpoint.

    Attributes:
      data: the position in the data.
      config: the configuration as JSON.
      layout: which fields the state has; 1 if absent. 2 added `held`.
    """

    data: DataPosition
    config: NotRequired[str]
    layout: NotRequired[int]


# The layout of the states that are saved today.
LAYOUT = 2
_DATA = {"step": Whole(0), "skipped": Items(Whole(0)), "seed": Whole(), "fingerprint": Text()}
_DATA |= {"num_images": Whole(1), "batch_size": Whole(1), "drop_last": Truth(), "imported": Text()}
META: Fields[Meta] = Fields({"data": Fields({}, _DATA)}, {"config": Text(), "layout": Whole(1)})
