"""LeJEPA: the views' states predict their center, and SIGReg keeps them isotropic Gaussian.

Source: LeJEPA, arXiv 2511.08544.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.methods.base import Method, Metrics, PyTree, Randomness, Suspect, linear_warmup
from hjepa_jax.methods.fill import settings_from
from hjepa_jax.objectives.lejepa import effective_weights, sigreg_objective
from hjepa_jax.objectives.sigreg import SIGRegSettings, random_slices

# Streams of the run's key; numbers are never reused, so that adding one changes no other.
_SLICES, _SUBSAMPLE = 1, 2


class LeJEPA(Method):
    """The prediction of the views' center with SIGReg of their states."""

    def sigreg_weight(self, step: jax.Array) -> jax.Array | float:
        """Returns the weight of SIGReg at `step`, after its linear warm-up."""
        sigreg = self.settings.sigreg
        if sigreg.weight_warmup_epochs == 0:
            return sigreg.weight
        return sigreg.weight * linear_warmup(
            step, sigreg.weight_warmup_epochs * self.steps_per_epoch
        )

    def _slices(self, key: jax.Array, step: jax.Array, stream: int, dtype: Any) -> jax.Array:
        """Draws directions [D, K], new ones every `refresh_interval` steps."""
        sigreg = self.settings.sigreg
        refresh = step // sigreg.refresh_interval
        slices_key = jax.random.fold_in(jax.random.fold_in(key, stream), refresh)
        return random_slices(slices_key, self.shape.dim, sigreg.num_slices, dtype)

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: Any
    ) -> Randomness:
        """Draws 'slices' [D, K] and the rows of the 'subsample' [S] if any; see `Method`."""
        sigreg = self.settings.sigreg
        drawn = {"slices": self._slices(key, step, _SLICES, dtype)}
        if sigreg.subsample is not None:
            rows = num_rows if sigreg.statistics == "flattened" else num_images
            subsample_key = jax.random.fold_in(jax.random.fold_in(key, _SUBSAMPLE), step)
            drawn["subsample"] = jax.random.permutation(subsample_key, rows)[: sigreg.subsample]
        return drawn

    def regularized(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        transform: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of states z [V, B, D], SIGReg being of `transform(z)`."""
        sigreg = self.settings.sigreg
        return sigreg_objective(
            z,
            randomness["slices"],
            settings_from(SIGRegSettings, sigreg),
            self.settings.data.num_global_views,
            transform=transform,
            subsample_index=randomness.get("subsample"),
            weight=self.sigreg_weight(step),
            loss_form=sigreg.loss_form,
            means=characteristic_means,
        )

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """Returns prediction and SIGReg; see `Method` and `sigreg_objective`."""
        del params, method_state
        return self.regularized(z, randomness, step)

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss, and their ratio."""
        sigreg = self.settings.sigreg
        return effective_weights(sigreg.weight, sigreg.loss_form)

    def targets(self) -> dict[str, float]:
        """Returns 1: SIGReg asks for unit variance."""
        return {"z": 1.0}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weight of SIGReg, see `Method`."""
        del part, term
        return "raise sigreg.weight"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        return {
            "pred": Suspect("the loss term pred", ("data.mean", "data.std")),
            "sigreg": Suspect("the loss term sigreg", ("sigreg.weight", "sigreg.loss_form")),
        }
