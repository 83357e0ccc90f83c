"""A second set of golden vectors by NumPy in float64, with hyper-parameters of its own.

It has what the published code can have and the set in `tests/golden` does not: an experimental
envelope with other weights and an active clip, a start epoch of the learned spectrum, and log-det
settings that q and p do not share. Derivatives are by complex steps, exact to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SIDE, CHANNELS, IMAGES, VIEWS = 8, 4, 6, 2
DIM = SIDE * SIDE * CHANNELS
MODEL = {
    "encoder_mode": "tokens",
    "token_layer": "layer3",
    "token_d_f": CHANNELS,
    "projector_type": "identity",
}


def _free_root(params: np.ndarray, index: np.ndarray, fields: Mapping[str, Any]) -> Any:
    """Returns (envelope, clipped deviation, eigenvalues), of params [bins] = offset, increments."""
    values = params[0] + np.concatenate([[0], np.cumsum(np.log1p(np.exp(params[1:])))])
    delta = values[index]
    if fields["gauge"] == 0:
        delta = delta - delta.mean()
    bound = fields["log_lambda_clip"]
    delta = np.where(delta.real > bound, bound, np.where(delta.real < -bound, -bound, delta))
    raised = np.exp(delta) + fields["eps_ridge"]
    mean = raised.mean() if fields["gauge"] == 1 else np.exp(np.log(raised).mean())
    return values, delta, raised / mean


def experimental(index: np.ndarray, seed: int, **fields: Any) -> dict[str, np.ndarray]:
    """Returns the group of an experimental envelope.

    Args:
      index: the radial bin of every frequency, [h, w].
      seed: of its numbers.
      **fields: 'gauge' (code), 'eps_ridge', 'log_lambda_clip', and the regularizer's weights.
    """
    random, bins = np.random.default_rng(seed), int(index.max()) + 1
    x, cot = random.standard_normal((2, 3, *index.shape, 2))
    # As published, the parameters are float32.
    params = np.float32(np.r_[-0.6, random.standard_normal(bins - 1) * 0.5 - 0.7]).astype(float)
    values, delta, eigenvalues = _free_root(params, index, fields)
    modes, pulled = (np.fft.fft2(a, axes=(1, 2)) for a in (x, cot))
    # d sum(transform * cot) / d root, by Parseval.
    weight = (modes * pulled.conj()).real.sum((0, 3)) / index.size

    def transformed(of: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(of * np.sqrt(eigenvalues)[None, :, :, None], axes=(1, 2)).real

    step = 1e-30
    grads = np.array(
        [
            (weight * np.sqrt(_free_root(params + 1j * step * unit, index, fields)[2])).sum().imag
            for unit in np.eye(bins)
        ]
    )
    grads /= step
    logs = delta.min(), delta.max()
    health = {
        "lam_min": eigenvalues.min(),
        "lam_max": eigenvalues.max(),
        "lam_cond": eigenvalues.max() / eigenvalues.min(),
        "g0": values[0],
        "g_last": values[-1],
        "loglam_min": logs[0],
        "loglam_max": logs[1],
    }
    excess = max(np.exp(logs[1] - logs[0]) - fields["cond_max"], 0.0) * (fields["cond_max"] > 0)
    regularizer = (
        fields["curvature_weight"] * (np.diff(values, n=2) ** 2).sum()
        + fields["loglambda_l2_weight"] * (delta**2).mean()
        + fields["cond_weight"] * excess**2
    )
    increment = np.log(np.expm1(1.6 / (bins - 1)))
    group: dict[str, Any] = {
        **{"h": index.shape[0], "w": index.shape[1], "d_f": 2, "bins": bins, "bin_idx_2d": index},
        **fields,
        **{"g1": np.float32(params[0]), "raw_deltas": np.float32(params[1:]), "x": x, "cot": cot},
        **{"init_g1": -0.8, "init_raw_deltas": np.full(bins - 1, increment)},
        **{"transform": transformed(modes), "grad_x": transformed(pulled)},
        **{"grad/g1": grads[0], "grad/raw_deltas": grads[1:]},
        **{"g_bins": values, "lambda_2d": eigenvalues, "spectral_regularizer": regularizer},
        **{f"health/{name}": value for name, value in health.items()},
    }
    return {name: np.asarray(value) for name, value in group.items()}


def _common(seed: int, steps: int) -> tuple[np.random.Generator, dict[str, Any]]:
    random = np.random.default_rng(seed)
    z = random.standard_normal((VIEWS * IMAGES, DIM)) * random.uniform(0.5, 1.5, DIM)
    return random, {
        "x": np.zeros((steps, VIEWS, IMAGES, 3, 32, 32), np.float16),
        "num_steps": steps,
        "z_step0": z.astype(np.float32),
        "hp/batches_per_epoch": 1,
    }


def _hyper_parameters(published: Mapping[str, Any], prefix: str = "hp/") -> dict[str, Any]:
    """Returns the numbers of a YAML file as the record has them."""
    found = {}
    for name, value in published.items():
        if isinstance(value, Mapping):
            found |= _hyper_parameters(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float)):
            found[f"{prefix}{name}"] = value
    return found


def _arrays(group: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in group.items()}


HAM: dict[str, Any] = {
    "data": {"batch_size": IMAGES, "num_global_views": VIEWS},
    "model": {**MODEL, "split_qp": False},
    "train": {
        **{"epochs": 4, "lr": 1e-3, "weight_decay": 0.01, "warmup_epochs": 1, "min_lr_ratio": 0.01},
        **{"lambda_reg": 0.07, "reg_lr": 0.02, "h_update_interval": 1, "h_grad_clip": 0.5},
        **{"h_update_mode": "max", "h_adv_mult": 3.0, "h_identity_epochs": 1},
        **{"h_base_ramp_epochs": 2, "h_learnable_ramp_epochs": 2, "h_learnable_start_epoch": 1},
    },
    "regularizer": {
        **{"type": "ham_sigreg", "ham_kind": "learnable", "num_slices": 5, "t_max": 2.5},
        **{"n_points": 7, "spectral_weight": 0.3},
        "ham_kwargs": {
            **{"h": SIDE, "w": SIDE, "d_f": CHANNELS, "bins": 5, "base": "r2", "gauge": "trace"},
            **{"span_max": 0.9, "base_ridge": 0.8, "base_strength": 3.0, "delta_clip": 0.4},
            **{"curvature_weight": 0.2, "loglambda_l2_weight": 0.4, "log_lambda_clip": 0.5},
        },
    },
}


def sigreg(z: np.ndarray, slices: np.ndarray, t_max: float, points: int) -> float:
    """SIGReg of views [V, B, D] with Gaussian weights, by a plain loop."""
    t, step = np.linspace(0, t_max, points), t_max / (points - 1)
    weight = np.where((t == 0) | (t == t[-1]), step, 2 * step) * np.exp(-(t**2) / 2)
    found = []
    for view in z:
        angles = (view @ slices)[..., None] * t
        error = (np.cos(angles).mean(0) - np.exp(-(t**2) / 2)) ** 2 + np.sin(angles).mean(0) ** 2
        found.append((len(view) * error * weight).sum(-1).mean())
    return float(np.mean(found))


def ham(index: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the group of a run with HAM: alpha is 0 in the first epoch, so is beta."""
    random, group = _common(3, 4)
    options = HAM["regularizer"]["ham_kwargs"]
    slices = random.standard_normal((4, DIM, 5))
    slices /= np.linalg.norm(slices, axis=1, keepdims=True)
    raw_span, raw_shape = np.float32(0.4), np.float32(random.standard_normal(4))
    span = options["span_max"] / (1 + np.exp(-float(raw_span)))
    steps = np.log1p(np.exp(raw_shape.astype(float)))
    values = span * np.r_[0.0, np.cumsum(steps / steps.sum())]
    values = options["delta_clip"] * np.tanh(values / options["delta_clip"])
    spec = options["curvature_weight"] * (np.diff(values, n=2) ** 2).sum()
    spec += options["loglambda_l2_weight"] * (values[index] ** 2).mean()
    # With alpha and beta 0 the transform is the identity.
    z = group["z_step0"].astype(float).reshape(VIEWS, IMAGES, DIM)
    pred = 0.5 * ((z.mean(0) - z) ** 2).mean()
    reg = sigreg(z, slices[0], HAM["regularizer"]["t_max"], HAM["regularizer"]["n_points"])
    train, weight = HAM["train"], HAM["regularizer"]["spectral_weight"]
    total = pred + train["lambda_reg"] * reg + weight * spec
    losses = {"pred": pred, "reg": reg, "spec": spec, "total": total}
    loss_reg = np.array([0.7, 1.1, 1.9])
    update = weight * spec - train["h_adv_mult"] * train["lambda_reg"] * loss_reg
    codes = {"train.h_update_mode_code": 1, "regularizer.ham_kwargs.gauge_code": 1}
    codes["regularizer.ham_kwargs.base_code"] = 1
    return _arrays(
        {
            **group,
            **_hyper_parameters(HAM),
            **{f"hp/{name}": code for name, code in codes.items()},
            **{"A": slices, "init/learnable_h.raw_span": raw_span},
            "init/learnable_h.raw_shape": raw_shape,
            # Two calls a step, of which the record has the first five.
            "alpha": np.array([0, 0, 0.5, 0.5, 1.0]),
            "beta": np.array([0, 0, 0.5, 0.5, 1.0]),
            # The spectrum is trained from the second epoch on.
            "h_update_steps": np.array([2, 3, 4]),
            **{"h/lr": np.full(3, train["reg_lr"]), "h/loss_reg": loss_reg},
            "h/loss_total": update,
            **{f"loss/{name}": np.full(4, value) for name, value in losses.items()},
        }
    )


HJEPA: dict[str, Any] = {
    "data": {"batch_size": IMAGES, "num_global_views": VIEWS},
    "model": {**MODEL, "split_qp": True},
    "hjepa": {"hamiltonian": "quadratic", "method": "symplectic_euler", "steps": 1, "dt": 0.125},
    "loss": {"match": "q", "p_weight": 0.6, "bidirectional": False},
    "regularizer": {
        **{
            "q_std_floor": 0.9,
            "p_std_floor": 1.1,
            "q_per_dim_target": 0.8,
            "p_per_dim_target": 1.5,
        },
        **{"q_logdet_proj_dim": 4, "q_logdet_floor": 0.9, "q_logdet_eps": 0.01},
        **{"q_logdet_refresh_interval": 2, "q_pr_norm_floor": 0.9, "q_eigmax_frac_ceiling": 0.2},
        **{"p_logdet_proj_dim": 6, "p_logdet_floor": 0.7, "p_logdet_eps": 0.2},
        **{"p_logdet_refresh_interval": 3, "p_pr_norm_floor": 0.8, "p_eigmax_frac_ceiling": 0.1},
    },
    "train": {
        **{"epochs": 4, "lr": 1e-3, "weight_decay": 0.01, "warmup_epochs": 1, "min_lr_ratio": 0.01},
        **{"lambda_budget": 0.3, "lambda_var": 0.4, "lambda_logdet": 0.6, "lambda_mean": 0.7},
    },
}


def _logdet(x: np.ndarray, projection: np.ndarray, half: str) -> float:
    options = {n[2:]: v for n, v in HJEPA["regularizer"].items() if n.startswith(half)}
    rows = x @ projection
    values = np.linalg.eigvalsh(np.cov(rows.T) + options["logdet_eps"] * np.eye(rows.shape[1]))
    terms = (
        options["logdet_floor"] - np.log(values).mean(),
        options["pr_norm_floor"] - values.sum() ** 2 / (values**2).sum() / len(values),
        values.max() / values.sum() - options["eigmax_frac_ceiling"],
    )
    return sum(max(term, 0.0) ** 2 for term in terms)


def hjepa() -> dict[str, np.ndarray]:
    """Returns the group of a run with HJEPA, whose halves have log-det settings of their own."""
    random, group = _common(5, 4)
    options, train = HJEPA["regularizer"], HJEPA["train"]
    half = DIM // 2
    # Steps 0..3: q is drawn at 0 and 2, p at 0 and 3.
    projections = {
        name: np.linalg.qr(random.standard_normal((2, half, options[f"{name}_logdet_proj_dim"])))[0]
        for name in ("q", "p")
    }
    z = group["z_step0"].astype(float)
    q, p = z[:, :half], z[:, half:]
    moved_p = p[:IMAGES] - 0.125 * q[:IMAGES]
    moved_q = q[:IMAGES] + 0.125 * moved_p
    pred = ((moved_q - q[IMAGES:]) ** 2).mean() + 0.6 * ((moved_p - p[IMAGES:]) ** 2).mean()
    losses = {"pred": pred, "mean": (z.mean(0) ** 2).mean(), "budget": 0.0, "var": 0.0}
    for name, x in (("q", q), ("p", p)):
        losses["budget"] += ((x**2).mean() - options[f"{name}_per_dim_target"]) ** 2
        floor = options[f"{name}_std_floor"] - np.sqrt(x.var(0) + 1e-4)
        losses["var"] += (np.maximum(floor, 0) ** 2).mean()
        losses[f"logdet_{name}"] = _logdet(x, projections[name][0], name)
    losses["logdet"] = losses["logdet_q"] + losses["logdet_p"]
    losses["total"] = pred + sum(
        train[f"lambda_{name}"] * losses[name] for name in ("budget", "var", "logdet", "mean")
    )
    return _arrays(
        {
            **group,
            **_hyper_parameters(HJEPA),
            "hp/loss.match_code": 0,
            **{f"R_{name}": value for name, value in projections.items()},
            "R_index": np.array([0, 0, 1, 1]),
            **{f"loss/{name}": np.full(4, value) for name, value in losses.items()},
        }
    )
