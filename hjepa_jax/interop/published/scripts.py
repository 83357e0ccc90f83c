"""Which published script, and which of its branches, a configuration belongs to.

The published code has two training scripts, for CIFAR and for ImageNet, that differ in more than
their data; the encoder stem tells which one a configuration belongs to. Both train HJEPA if there
is a section `hjepa`, and otherwise LeJEPA with the regularizer that `regularizer.type` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

from hjepa_jax.config.values import shown
from hjepa_jax.errors import ConfigError

Published: TypeAlias = Mapping[str, object]

NAME = "the published configuration"
# With their nested sections. All other names are keys.
SECTIONS = ("data", "hjepa", "loss", "model", "regularizer", "regularizer.ham_kwargs", "train")


def keys_of(published: Published, prefix: str = "") -> dict[str, object]:
    """Returns the values of a published configuration by dotted key.

    Raises:
      ConfigError: if a section is not a mapping, or has a name that is not text.
    """
    found: dict[str, object] = {}
    for name, value in published.items():
        if not isinstance(name, str):
            raise ConfigError(
                f"{NAME} has the key {shown(name)} in {prefix.rstrip('.') or 'its top level'}, "
                "which is not text: remove it."
            )
        path = f"{prefix}{name}"
        if path not in SECTIONS:
            found[path] = value
        elif isinstance(value, Mapping):
            found |= keys_of(value, f"{path}.")
        else:
            raise ConfigError(f"{NAME}'s {path} is {shown(value)}: it must be a section.")
    return found


@dataclasses.dataclass(frozen=True)
class Script:
    """The branch of a script that a configuration runs.

    Attributes:
      imagenet: whether it is the ImageNet script.
      hjepa: whether it trains HJEPA.
      regularizer: 'sigreg', 'ham_sigreg' or 'none' of LeJEPA; '' for HJEPA.
      ham_kind: the kind of a 'ham_sigreg'; '' for others.
      hamiltonian: the form of the energy; '' for LeJEPA.
    """

    imagenet: bool
    hjepa: bool
    regularizer: str
    ham_kind: str
    hamiltonian: str

    @classmethod
    def of(cls, published: Published, keys: Mapping[str, object]) -> Script:
        """Returns the branch of a configuration with these keys; wrong values are not noticed."""
        hjepa = "hjepa" in published
        regularizer = "" if hjepa else str(keys.get("regularizer.type", ""))
        transforms = regularizer == "ham_sigreg"
        return cls(
            imagenet=keys.get("model.encoder_stem", "cifar") == "imagenet",
            hjepa=hjepa,
            regularizer=regularizer,
            ham_kind=str(keys.get("regularizer.ham_kind", "chain")) if transforms else "",
            hamiltonian=str(keys.get("hjepa.hamiltonian", "separable")) if hjepa else "",
        )

    @property
    def name(self) -> str:
        """'ImageNet' or 'CIFAR'."""
        return "ImageNet" if self.imagenet else "CIFAR"


@dataclasses.dataclass(frozen=True)
class Branch:
    """Where the scripts read a key; `text` is the end of 'read ...'."""

    text: str
    holds: Callable[[Script], bool]


ALWAYS = Branch("", lambda script: True)
CIFAR = Branch("by the CIFAR script alone", lambda script: not script.imagenet)
IMAGENET = Branch("by the ImageNet script alone", lambda script: script.imagenet)
HJEPA = Branch("for HJEPA alone", lambda script: script.hjepa)
LEJEPA = Branch("without a section `hjepa` alone", lambda script: not script.hjepa)
REGULARIZED = Branch("with a regularizer alone", lambda script: script.regularizer != "none")
TRANSFORMED = Branch(
    "for `regularizer.type: ham_sigreg` alone", lambda script: script.regularizer == "ham_sigreg"
)
CHAIN = Branch("for `regularizer.ham_kind: chain` alone", lambda script: script.ham_kind == "chain")
LEARNABLE = Branch(
    "for `regularizer.ham_kind: learnable` alone", lambda script: script.ham_kind == "learnable"
)
NOT_LEARNABLE_H = Branch(
    "unless the energy is `learnable`", lambda script: script.hamiltonian != "learnable"
)
