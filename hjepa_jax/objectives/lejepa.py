"""The LeJEPA objective: prediction of the views' center plus SIGReg.

Source: LeJEPA, arXiv 2511.08544.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hjepa_jax.objectives.characteristic_function import Means, trigonometric_means
from hjepa_jax.objectives.regularizers import at_least_float32, mean_penalty, pooled_variance
from hjepa_jax.objectives.sigreg import SIGRegSettings, sigreg

LossForm = Literal["additive", "convex"]
LOSS_FORMS: tuple[LossForm, ...] = get_args(LossForm)


def lejepa_prediction(
    z_views: Float[Array, "views batch d"], num_global_views: int
) -> Float[Array, ""]:
    """Returns 1/2 mean((center - z)^2), center = mean of the global views, gradient included.

    Args:
        z_views: [V, B, D], global views first.
        num_global_views: how many of the V views are global.

    Raises:
        ValueError: num_global_views is not in 1..V.
    """
    if z_views.ndim != 3 or not 1 <= num_global_views <= z_views.shape[0]:
        raise ValueError(
            f"need z [V, B, D] and 1 <= num_global_views <= V, got {z_views.shape} and "
            f"{num_global_views}"
        )
    z_views = at_least_float32(z_views)
    center = jnp.mean(z_views[:num_global_views], axis=0)
    return 0.5 * jnp.mean(jnp.square(center - z_views))


def _check_form(loss_form: LossForm) -> None:
    if loss_form not in LOSS_FORMS:
        raise ValueError(
            f"sigreg.loss_form must be one of {', '.join(LOSS_FORMS)}, got {loss_form!r}"
        )


def effective_weights(weight: float, loss_form: LossForm) -> dict[str, float]:
    """Returns the factors of the prediction and of SIGReg, and their ratio, for printing.

    'additive' pred + weight * sigreg; 'convex' (1 - weight) * pred + weight * sigreg. The two are
    the same up to scale when the ratios agree. The prediction's own factor 1/2 is not included.

    Args:
        weight: weight of SIGReg.
        loss_form: one of LOSS_FORMS.

    Returns:
        {'pred', 'sigreg', 'sigreg/pred'}.

    Raises:
        ValueError: an unknown form, a negative weight, or a convex weight above one.
    """
    _check_form(loss_form)
    if weight < 0 or (loss_form == "convex" and weight > 1):
        raise ValueError(
            f"sigreg.weight must be non-negative, and at most 1 for the convex form, got {weight}"
        )
    prediction = 1.0 if loss_form == "additive" else 1.0 - weight
    ratio = weight / prediction if prediction else float("inf")
    return {"pred": prediction, "sigreg": float(weight), "sigreg/pred": ratio}


def sigreg_objective(
    z: Float[Array, "views batch d"],
    slices: Float[Array, "d k"],
    settings: SIGRegSettings,
    num_global_views: int,
    *,
    weight: Float[Array, ""] | float,
    loss_form: LossForm = "additive",
    transform: Callable[[Float[Array, "views batch d"]], Float[Array, "views batch d"]]
    | None = None,
    subsample_index: Int[Array | np.ndarray, " rows"] | None = None,
    means: Means = trigonometric_means,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the total loss and its parts.

    Args:
        z: [V, B, D], global views first.
        slices: [D, K] unit columns.
        settings: settings of SIGReg.
        num_global_views: how many of the V views are global.
        weight: weight of SIGReg; may be traced (a schedule), and is not checked here.
        loss_form: 'additive' or 'convex', see `effective_weights`.
        transform: applied to z before SIGReg only (HamSIGReg: H^{1/2}); None = identity.
        subsample_index: see `sigreg`.
        means: see `sigreg`.

    Returns:
        (total, metrics): metrics has 'pred', 'sigreg', 'total' and the statistics 'z2',
        'z_mean2' and 'z_std_min' of all views' rows, without gradient.

    Raises:
        ValueError: an unknown form, settings.reduction 'none', or see `sigreg`.
    """
    if settings.reduction == "none":
        raise ValueError("sigreg.reduction 'none' gives no scalar loss: use 'mean' or 'sum'")
    _check_form(loss_form)
    z = at_least_float32(z)
    prediction = lejepa_prediction(z, num_global_views)
    transformed = z if transform is None else transform(z)
    regularizer = sigreg(
        transformed, slices, settings, subsample_index=subsample_index, means=means
    )
    kept = prediction if loss_form == "additive" else (1 - weight) * prediction
    total = kept + weight * regularizer
    rows = jax.lax.stop_gradient(z)
    metrics = {
        "pred": prediction,
        "sigreg": regularizer,
        "total": total,
        "z2": jnp.mean(jnp.square(rows)),
        "z_mean2": mean_penalty(rows),
        "z_std_min": jnp.sqrt(jnp.min(pooled_variance(rows))),
    }
    return total, metrics
