"""A method of your own: VICReg, which pulls views together and decorrelates their dimensions.

hjepa train --config=quickstart --workdir=runs/own_method \
    --config.method=examples.own_method:VICReg --config.model.projector=mlp

Source: Bardes, Ponce & LeCun, "VICReg" (arXiv 2105.04906). The invariance is a mean over
dimensions, as in the paper's Algorithm 1. The package has it as method 'vicreg', also in shares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import field
from hjepa_jax.methods.base import Method, Metrics, Randomness
from hjepa_jax.objectives.regularizers import state_statistics


@dataclasses.dataclass(frozen=True)
class VICRegSection:
    """Invariance, variance, and covariance of pairs of views."""

    invariance_weight: float = field(25.0, "Weight of the views' distance.", at_least=0)
    variance_weight: float = field(25.0, "Weight of the hinge on standard deviations.", at_least=0)
    covariance_weight: float = field(1.0, "Weight of the covariances.", at_least=0)
    gamma: float = field(1.0, "Standard deviation below which the hinge acts.", above=0)
    eps: float = field(1e-4, "Added to variances before their square root.", above=0)


class VICReg(Method):
    """The method, selected by `config.method`."""

    sections: ClassVar = {"own_vicreg": VICRegSection}
    losses: ClassVar = ("invariance", "variance", "covariance")

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        data = settings.data
        if data.num_global_views < 2:
            yield "config.data.num_global_views is 1, but VICReg compares views: set it to 2."
        if data.num_local_views:
            yield "config.data.num_local_views is above 0, but VICReg takes none: set it to 0."
        if data.batch_size < 2:
            yield "config.data.batch_size is 1, but one image has no variance: set it to 2 or more."

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        own, (views, images, dim) = self.settings.section(VICRegSection), z.shape
        one, two = jnp.triu_indices(views, 1)
        variances = jnp.var(z, axis=1, ddof=1)
        centered = z - jnp.mean(z, axis=1, keepdims=True)
        covariances = jnp.einsum("vbi,vbj->vij", centered, centered) / (images - 1)
        covariances *= 1 - jnp.eye(dim, dtype=z.dtype)
        # A pair has the regularizers of both views: on average twice the mean over all views.
        terms = {
            "invariance": jnp.mean(jnp.square(z[one] - z[two])),
            "variance": 2 * jnp.mean(jax.nn.relu(own.gamma - jnp.sqrt(variances + own.eps))),
            "covariance": 2 * jnp.sum(jnp.square(covariances)) / (views * dim),
        }
        total = sum(factor * terms[name] for name, factor in self.weights().items())
        return jnp.asarray(total), {**terms, **state_statistics(z)}

    def weights(self) -> dict[str, float]:
        own = self.settings.section(VICRegSection)
        names = ("invariance", "variance", "covariance")
        return {name: getattr(own, f"{name}_weight") for name in names}
