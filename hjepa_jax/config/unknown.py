"""Unknown fields: the most likely intended field, and names in older versions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

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


def _nearest_field(rows: Mapping[str, Row], path: str) -> str:
    """Returns the field most similar to `path`, searching its section first."""
    section, _, leaf = path.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in rows}
    inside = [name for name in rows if name.rpartition(".")[0] == section]
    # A field given without its section is most often one of `train`.
    everywhere = sorted(rows, key=lambda name: not name.startswith("train."))
    for names in (inside, everywhere):
        for name in names:
            if leaf == leaves[name] or leaf.lower() in rows[name].spec.aliases:
                return name
    words = {leaves[name]: name for name in inside}
    words |= {alias: name for name in inside for alias in rows[name].spec.aliases}
    near = difflib.get_close_matches(leaf, words, 1, 0.6)
    if near:
        return words[near[0]]
    return difflib.get_close_matches(path, tuple(rows), 1, 0.0)[0]


def field_of_word(of: Schema, word: str) -> str | None:
    """Returns the field that has a word as its name or as an alias, else None."""
    everywhere = sorted(of.rows, key=lambda name: not name.startswith("train."))
    for name in everywhere:
        if word == name.rpartition(".")[2] or word.lower() in of.rows[name].spec.aliases:
            return name
    return None


def unknown_field(of: Schema, path: str) -> str | None:
    """Returns a sentence with the nearest field if `path` is unknown, else None."""
    if path in of.rows or path in of.sections:
        return None
    if path == "objective":
        return _OBJECTIVE
    if now := renamed(path):
        return f"config.{path} is now config.{now}: use the new name."
    return (
        f"config.{path[:100]} is not a field of the configuration: "
        f"did you mean config.{_nearest_field(of.rows, path[:100])}?"
    )
