"""Unknown fields: the most likely intended field, and names in older versions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from hjepa_jax.config.fields import Row
from hjepa_jax.config.settings import Schema

# Old dotted name -> new one.
RENAMED: dict[str, str] = {
    "data.augment.grey_probability": "data.augment.gray_probability",
    "data.augment.solarise_probability": "data.augment.solarize_probability",
    "data.augment.solarise_threshold": "data.augment.solarize_threshold",
    "model.width": "resnet.width",
    "model.stage_blocks": "resnet.stage_blocks",
    "model.stem": "resnet.stem",
    "model.mode": "resnet.head",
    "model.token_layer": "resnet.token_layer",
    "model.token_dim": "resnet.token_dim",
    "model.token_hw": "resnet.token_grid",
    "model.embed_dim": "resnet.embed_dim",
    "model.remat": "resnet.remat",
    "parity.reference_layout": "hamsigreg.reference_layout",
    "parity.reference_evaluation": "evaluation.reference_evaluation",
    "evaluation.variant": "evaluation.state_part",
    "evaluation.qp_variants": "evaluation.all_state_parts",
}

# Old section -> new one, with the same field names.
RENAMED_SECTIONS: dict[str, str] = {"spectral": "hamsigreg"}
# What other programs have as fields -> what to do instead.
_NO_FIELDS = {
    "device devices num_devices gpu gpus num_gpus n_gpus gpu_ids accelerator": (
        "every device is used; choose them by CUDA_VISIBLE_DEVICES, or cpu by JAX_PLATFORMS"
    ),
    "nodes num_nodes num_hosts world_size": "give --coordinator_address and --num_processes",
    "workdir work_dir output_dir out_dir save_dir run_dir log_dir logdir checkpoint_dir": (
        "give --workdir"
    ),
    "resume resume_from resume_from_checkpoint ckpt_path": "give --resume=RUN",
    "scheduler lr_scheduler lr_schedule schedule": (
        "the learning rate warms up, and falls as a cosine; set config.train.warmup_epochs and "
        "config.train.min_lr_ratio"
    ),
    "temperature temp tau": "no loss of this project has a temperature",
    "num_classes n_classes classes": "the data has the classes",
}
_OBJECTIVE = (
    "config.objective is now config.method: 'hjepa', 'lejepa' for SIGReg of untransformed states, "
    "or 'hamsigreg' for a former config.spectral.kind other than 'identity'."
)


def renamed(path: str) -> str | None:
    """Returns the current name of a field of an older version, else None."""
    section, _, leaf = path.partition(".")
    if section in RENAMED_SECTIONS:
        leaf = leaf.replace("regulariser", "regularizer")
        return f"{RENAMED_SECTIONS[section]}.{leaf}".rstrip(".")
    return RENAMED.get(path)


def _plain(word: str) -> str:
    """Returns a word without case and underscores: 'learningRate' is learning_rate."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _words(row: Row) -> list[str]:
    """Returns a field's own name and its names in other programs."""
    return [row.path.rpartition(".")[2], *row.spec.aliases.split()]


def field_of_word(of: Schema, word: str, names: Iterable[str] | None = None) -> str | None:
    """Returns the field that has a word as its name, or else as an alias; None if there is none.

    Args:
      of: the schema.
      word: a name without a section.
      names: the fields to search; None = all, those of `train` first.
    """
    # A field given without its section is most often one of `train`.
    names = names or sorted(of.rows, key=lambda name: not name.startswith("train."))
    known = [(name, [_plain(known) for known in _words(of.rows[name])]) for name in names]
    exact = [name for name, (own, *_) in known if own == _plain(word)]
    return next(iter([*exact, *(name for name, words in known if _plain(word) in words)]), None)


def _nearest_field(of: Schema, path: str) -> str:
    """Returns the field most similar to `path`, searching its section first."""
    section, _, leaf = path.rpartition(".")
    inside = [name for name in of.rows if name.rpartition(".")[0] == section]
    found = field_of_word(of, leaf, inside) if inside else None
    if found or (found := field_of_word(of, leaf)):
        return found
    words = {word: name for name in inside for word in reversed(_words(of.rows[name]))}
    near = difflib.get_close_matches(leaf, words, 1, 0.6)
    if near:
        return words[near[0]]
    return difflib.get_close_matches(path, tuple(of.rows), 1, 0.0)[0]


def unknown_field(of: Schema, path: str) -> str | None:
    """Returns a sentence with the nearest field if `path` is unknown, else None."""
    if path in of.rows or path in of.sections:
        return None
    if path == "objective":
        return _OBJECTIVE
    if now := renamed(path):
        return f"config.{path} is now config.{now}: use the new name."
    leaf = _plain(path.rpartition(".")[2])
    for words, advice in _NO_FIELDS.items():
        if leaf in map(_plain, words.split()) and not field_of_word(of, leaf):
            return f"config.{path[:100]} is not a field of the configuration: {advice}."
    return (
        f"config.{path[:100]} is not a field of the configuration: "
        f"did you mean config.{_nearest_field(of, path[:100])}?"
    )
