"""What a step takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import jax
from jaxtyping import PyTree

# Entries are arrays, except for the `ResidentImages`.
Batch: TypeAlias = Mapping[str, PyTree[jax.Array]]
# Parameters, or batch statistics, of each part.
Parts: TypeAlias = Mapping[str, PyTree[jax.Array]]
