"""The LeJEPA objective: prediction of the views' center plus SIGReg.

Source: LeJEPA, arXiv 2511.08544.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName

LossForm = Literal["additive", "convex"]
LOSS_FORMS: tuple[LossForm, ...] = get_args(LossForm)


def lejepa_prediction(
    z_views: Float[Array, "views batch d"], num_global_views: int, axis_name: AxisName = None
) -> Float[Array, ""]:
    """Returns 1/2 mean((center - z)^2), center = mean of the global views, gradient included.

    Args:
        z_views: [V, B, D], global views first.
        num_global_views: how many of the V views are global.
        axis_name: see `shares`.

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
    return 0.5 * shares.mean(jnp.square(center - z_views), axis_name)


def _check_form(loss_form: LossForm) -> None:
    if loss_form not in LOSS_FORMS:
        raise ValueError(
            f"sigreg.loss_form must be one of {', '.join(LOSS_FORMS)}, got {loss_form!r}"
        )


def effective_weights(
    weight: float, loss_form: LossForm, prediction_weight: float = 1.0
) -> dict[str, float]:
    """Returns the factors of the prediction and of SIGReg, and their ratio, for printing.

    'additive' prediction_weight * pred + weight * sigreg; 'convex' (1 - weight) * pred + weight *
    sigreg. The two are the same up to scale when the ratios agree. The prediction's own factor 1/2
    is not included.

    Args:
        weight: weight of SIGReg.
        loss_form: one of LOSS_FORMS.
        prediction_weight: weight of the prediction in the additive form.

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
    prediction = prediction_weight if loss_form == "additive" else 1.0 - weight
    ratio = weight / prediction if prediction else float("inf")
    return {"pred": prediction, "sigreg": float(weight), "sigreg/pred": ratio}


def lejepa_total(
    prediction: Float[Array, ""],
    regularizer: Float[Array, "*statistics"],
    *,
    weight: Float[Array, ""] | float,
    loss_form: LossForm,
    prediction_weight: float = 1.0,
) -> Float[Array, ""]:
    """Returns the total loss: prediction and SIGReg by their weights, see `effective_weights`.

    Args:
        prediction: `lejepa_prediction`.
        regularizer: SIGReg, a scalar.
        weight: weight of SIGReg; may be traced (a schedule), and is not checked here.
        loss_form: one of LOSS_FORMS.
        prediction_weight: weight of the prediction in the additive form.

    Raises:
        ValueError: an unknown form, or statistics that are not reduced to a scalar.
    """
    _check_form(loss_form)
    if regularizer.ndim:
        raise ValueError(
            f"SIGReg of shape {regularizer.shape} is no scalar loss: reduce it by 'mean' or 'sum'"
        )
    kept = (prediction_weight if loss_form == "additive" else 1 - weight) * prediction
    return kept + weight * regularizer
