"""Variants of configurations: methods, and the `smoke` size that runs anywhere in seconds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import cast

from ml_collections import ConfigDict

from hjepa_jax.config.checks import automatic
from hjepa_jax.config.files import schema_of_config, set_field
from hjepa_jax.config.parts import ENCODERS, METHODS, ModelPart, load_part
from hjepa_jax.errors import ConfigError


def smoke(config: ConfigDict) -> None:
    """Shrinks any configuration to a few seconds on the embedded digits, with the same method."""
    rows = schema_of_config(config).rows
    for path in automatic(config):
        # A test set is also held out of the few images of a smoke test.
        if path != "data.test_holdout":
            set_field(config, path, rows[path].default)
    config.data.update(
        name="digits",
        root=None,
        test_split="test",
        batch_size=16,
        num_workers=0,
        max_train_images=64,
        max_test_images=32,
        image_size=16,
        eval_resize=None,
    )
    config.data.augment.blur_kernel = 3
    config.model.compute_dtype = "float32"
    for table, name in ((METHODS, config.method), (ENCODERS, config.model.encoder)):
        cast(type[ModelPart], load_part(table, name)).shrink(config)
    if config.model.projector_widths:
        config.model.projector_widths = tuple(min(w, 16) for w in config.model.projector_widths)
    if config.data.num_local_views:
        config.data.local_size = config.data.image_size
    config.train.update(max_steps=2, epochs=1, warmup_epochs=0.5, fast_compile=True)
    config.evaluation.update(batch_size=32, probe_epochs=2, knn_k=(1, 5, 20))
    config.log.every_steps = 1


def chain(*changes: Callable[[ConfigDict], None]) -> Callable[[ConfigDict], None]:
    """Returns one function that applies all changes in order."""

    def apply(config: ConfigDict) -> None:
        for change in changes:
            change(config)

    return apply


def apply_variants(
    config: ConfigDict, variant: str, methods: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Applies one method (the first of `methods` by default), then 'smoke' if requested.

    Args:
      config: changed in place and returned.
      variant: '', 'METHOD', 'smoke' or 'METHOD-smoke'.
      methods: method name -> change that it makes.

    Raises:
      ConfigError: if a name is unknown; the message suggests the nearest one.
    """
    names = [name for name in variant.split("-") if name]
    options = (*methods, "smoke")
    for name in names:
        if name not in options:
            nearest = difflib.get_close_matches(name, options, 1, 0.0)[0]
            raise ConfigError(
                f"{name!r} is not a variant of this configuration ({', '.join(options)}): "
                f"did you mean ':{nearest}'?"
            )
    chosen = [name for name in names if name != "smoke"] or [next(iter(methods))]
    if len(chosen) > 1:
        raise ConfigError(
            f"variant {variant!r} names {len(chosen)} methods: name one, optionally with 'smoke', "
            f"for example ':{chosen[0]}-smoke'."
        )
    methods[chosen[0]](config)
    if "smoke" in names:
        smoke(config)
    return config
