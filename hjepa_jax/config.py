"""The base configuration: every field, its default and its meaning.

The files in `configs/` are small deltas of `base_config()`; `config_check.py` validates the result.
A field set to None means "not used" or "derived", as its comment says.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from hjepa_jax.errors import ConfigError


def _optional(kind: type, value: Any = None) -> Any:
    """A typed field that may also be None."""
    return config_dict.FieldReference(value, field_type=kind)


def _data() -> ConfigDict:
    return ConfigDict(
        {
            # 'digits' (embedded), 'cifar10', 'cifar100', 'folder', or 'tfds:<name>'.
            "name": "digits",
            # Folder or archive that holds the data; not used by 'digits'.
            "root": _optional(str),
            # Splits used for training (self-supervised) and for the evaluation's test set.
            "train_split": "train",
            "test_split": "test",
            # Use only the first N images of a seeded shuffle of the split; None = all.
            "max_train_images": _optional(int),
            "max_test_images": _optional(int),
            # Images per step over all devices and processes.
            "batch_size": 512,
            "num_global_views": 2,
            "num_local_views": 0,
            # Side in pixels of the square global and local crops.
            "image_size": 32,
            "local_size": 32,
            # Range of crop area over image area.
            "global_scale": (0.3, 1.0),
            "local_scale": (0.05, 0.3),
            # Worker processes of the input pipeline; 0 = threads of this process.
            "num_workers": 0,
            # Threads that load and augment in each process.
            "num_threads": 2,
            # Batches made ahead on the host, and copied ahead to the device.
            "prefetch_batches": 4,
            "device_prefetch": 2,
            # Memory in MiB for encoded images of file-based data, in each process; 0 = no cache.
            "cache_mb": 2048,
            # Where the augmentation runs: 'host', or 'device' (with the same random parameters).
            "backend": "host",
            # A corrupt image: 'skip' it (its place is taken by another image) or stop with 'error'.
            "on_corrupt": "error",
            # Per-channel normalisation, applied on the device to images scaled to [0, 1].
            "mean": (0.5071, 0.4867, 0.4408),
            "std": (0.2675, 0.2565, 0.2761),
            # Evaluation: resize the short side to this before the centre crop; None = no resizing
            # beyond what makes the image image_size x image_size.
            "eval_resize": _optional(int),
            "augment": {
                "crop_aspect": (3 / 4, 4 / 3),
                "flip_probability": 0.5,
                "jitter_probability": 0.8,
                "brightness": 0.4,
                "contrast": 0.4,
                "saturation": 0.2,
                "hue": 0.1,
                "grey_probability": 0.2,
                "blur_probability": 0.5,
                # Odd Gaussian kernel size in pixels, and the range of its sigma.
                "blur_kernel": 3,
                "blur_sigma": (0.1, 2.0),
                "solarise_probability": 0.2,
                "solarise_threshold": 128,
            },
        }
    )


def _model() -> ConfigDict:
    return ConfigDict(
        {
            # Channels of the first stage; 64 is ResNet-18 (stages have 1, 2, 4, 8 times this).
            "width": 64,
            # 'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, max-pool).
            "stem": "cifar",
            # 'tokens' (feature map as tokens) or 'global' (average pool, then Linear).
            "mode": "tokens",
            # tokens: stage tapped ('layer2', 'layer3', 'layer4'), channels per token, and the side
            # of the token grid after adaptive average pooling (None = as the stage gives it).
            "token_layer": "layer3",
            "token_dim": 32,
            "token_hw": _optional(int),
            # Half of the channels of each token are position q, half momentum p: z = [q | p].
            "split_qp": True,
            # global: dimension of the embedding.
            "embed_dim": 2048,
            # 'identity' or 'mlp' (Linear, BatchNorm, ReLU, Linear).
            "projector": "identity",
            "projector_hidden": 2048,
            "projector_dim": 2048,
            # Encoder arithmetic: 'bfloat16' or 'float32'. Parameters and losses are float32.
            "compute_dtype": "bfloat16",
        }
    )


def _dynamics() -> ConfigDict:
    return ConfigDict(
        {
            # 'hamiltonian', 'mlp' (matched parameter count) or 'identity'.
            "predictor": "hamiltonian",
            # 'separable', 'learnable' or 'quadratic'.
            "hamiltonian": "separable",
            # 'leapfrog', 'symplectic_euler', 'yoshida4' or 'implicit_midpoint'.
            "integrator": "leapfrog",
            "steps": 2,
            "dt": 0.05,
            # Learn dt through a softplus; refused for training, where dt collapses to zero.
            "learn_dt": False,
            # Conformal-symplectic momentum damping rate; 0 = none.
            "damping": 0.0,
            # The residual f of the potential: `depth` hidden layers of `hidden_dim`.
            "hidden_dim": 256,
            "depth": 2,
            "activation": "gelu",
            "residual_scale": 0.02,
            # Epochs over which residual_scale grows linearly from 0.
            "residual_scale_warmup_epochs": 10.0,
            "base_coeff": 0.1,
            # implicit_midpoint: iterations at most, and the residual that counts as converged.
            "midpoint_iterations": 50,
            "midpoint_tolerance": 1e-6,
        }
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        {
            # hjepa: compare 'q', 'p' or 'qp'; p_weight adds p's error to match 'q'.
            "match": "q",
            "p_weight": 0.2,
            "energy_weight": 0.0,
            "bidirectional": True,
            "detach_target": True,
            # 'first_two', 'all_global' or 'local_to_global'.
            "pairing": "first_two",
            "budget_weight": 0.2,
            "var_weight": 0.5,
            "logdet_weight": 0.5,
            "mean_weight": 0.05,
            # Budget: targets of mean(q^2) and mean(p^2).
            "q_target": 1.0,
            "p_target": 1.0,
            # Variance floor on the standard deviation of each dimension.
            "q_std_floor": 0.2,
            "p_std_floor": 0.2,
            "std_eps": 1e-4,
            # Projected log-det floor; None switches a term off.
            "logdet_dim": 128,
            "logdet_eps": 1e-4,
            "logdet_refresh_interval": 16,
            "q_logdet_floor": -1.5,
            "p_logdet_floor": -1.5,
            "q_pr_floor": _optional(float, 0.12),
            "p_pr_floor": _optional(float, 0.16),
            "q_eigmax_ceiling": _optional(float, 0.35),
            "p_eigmax_ceiling": _optional(float, 0.30),
        }
    )


def _sigreg() -> ConfigDict:
    return ConfigDict(
        {
            # sigreg objective: 'additive' (pred + weight * sigreg) or
            # 'convex' ((1 - weight) * pred + weight * sigreg).
            "loss_form": "additive",
            "weight": 0.02,
            # Statistics 'per_view' or 'flattened' over all views.
            "statistics": "per_view",
            "num_slices": 64,
            "t_max": 3.0,
            "n_points": 9,
            "weight_type": "gaussian",
            # Use only this many images for the statistic; None = all.
            "subsample": _optional(int),
            "refresh_interval": 1,
            # Statistics below this count as zero; None = off.
            "clip_value": _optional(float),
            # Over slices and views: 'mean' or 'sum'.
            "reduction": "mean",
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 30,
            # Stop after this many steps even if epochs are left; None = no limit.
            "max_steps": _optional(int),
            "lr": 5e-4,
            # Learning rate of the predictor (potential); None = lr.
            "predictor_lr": _optional(float),
            "weight_decay": 5e-4,
            "b1": 0.9,
            "b2": 0.999,
            "adam_eps": 1e-8,
            # Global gradient norm; None = no clipping.
            "grad_clip": _optional(float, 1.0),
            # Linear warm-up from warmup_init_ratio * lr, then cosine to min_lr_ratio * lr.
            "warmup_epochs": 10.0,
            "warmup_init_ratio": 0.01,
            "min_lr_ratio": 0.001,
        }
    )


def _evaluation() -> ConfigDict:
    return ConfigDict(
        {
            # Part of the state evaluated: 'q', 'p' or 'qp' (split_qp), else 'qp'.
            "variant": "q",
            # kNN and probe of q, p and qp beside the variant; only with split_qp.
            "qp_variants": True,
            # Images per forward pass when features are extracted.
            "batch_size": 512,
            # Neighbours (those above the training set size are left out), and the k of tables.
            "knn_k": (1, 5, 10, 20, 50, 100, 200),
            "headline_k": 20,
            # Training rows that kNN compares at a time; bounds its memory, not its result.
            "knn_block": 8192,
            "probe_epochs": 50,
            "probe_batch_size": 256,
            "probe_lr": 1e-3,
            "probe_weight_decay": 1e-6,
            # More learning rates to try beside probe_lr; the best in cross-validation over
            # probe_folds parts of the training set is reported. () = the published protocol.
            "probe_lr_sweep": (),
            "probe_folds": 5,
            # Few-shot probes: training images per class, () = none; draws of them to average.
            "few_shot": (),
            "few_shot_trials": 5,
            # Changes of the test images under which kNN and probe are tested again:
            # any of 'grey', 'noise', 'blur', 'shift', 'contrast', 'occlusion'.
            "robustness": (),
            # Covariance spectrum: samples used and eigenvalues kept.
            "spectrum_samples": 5000,
            "spectrum_top": 256,
            # Pairs of augmented views for alignment and uniformity.
            "alignment_samples": 5000,
            # Random pairs at most for cosine similarities and for uniformity.
            "max_pairs": 20000,
            # Seeds probe, subsamples, random pairs and the pictures' choice of images.
            "seed": 0,
            # Also evaluate raw pixels (averaged down to at most 32 x 32) as if an encoder.
            "pixel_baseline": False,
            # Also evaluate the encoder at its random initialisation.
            "random_baseline": True,
        }
    )


def base_config() -> ConfigDict:
    """Returns the base configuration, the CIFAR-100 HJEPA recipe on the embedded data set."""
    return ConfigDict(
        {
            # Seeds parameters, data order, augmentation and random projections.
            "seed": 42,
            # 'hjepa' or 'sigreg' (the LeJEPA baseline).
            "objective": "hjepa",
            "data": _data(),
            "model": _model(),
            "dynamics": _dynamics(),
            "loss": _loss(),
            "sigreg": _sigreg(),
            "train": _train(),
            "evaluation": _evaluation(),
            "checkpoint": {
                # Steps between checkpoints; None = once an epoch.
                "every_steps": _optional(int),
                "keep_last": 2,
            },
            "log": {
                # Steps between log lines.
                "every_steps": 10,
            },
        }
    )


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the whole batches in one epoch (the last partial batch is dropped)."""
    return num_images // batch_size


def total_steps(config: ConfigDict, num_images: int) -> int:
    """Returns the optimiser steps of a whole run."""
    steps = math.ceil(config.train.epochs * steps_per_epoch(num_images, config.data.batch_size))
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)


def smoke(config: ConfigDict) -> None:
    """Shrinks any configuration to a few seconds on the embedded digits, the method unchanged."""
    imagenet_stem = config.model.stem == "imagenet"
    config.data.update(
        name="digits",
        root=None,
        test_split="test",
        batch_size=16,
        num_workers=0,
        max_train_images=64,
        max_test_images=32,
        image_size=64 if imagenet_stem else 16,
        eval_resize=None,
    )
    if config.data.num_local_views:
        config.data.local_size = config.data.image_size
    config.data.augment.blur_kernel = 3
    config.model.update(width=8, token_dim=8, compute_dtype="float32")
    if config.model.token_hw is not None:
        config.model.token_hw = 2
    if config.objective == "hjepa":
        config.dynamics.hidden_dim = 16
        config.loss.logdet_dim = 8
    config.train.update(max_steps=2, epochs=1, warmup_epochs=0.5)
    config.evaluation.update(batch_size=32, probe_epochs=2, knn_k=(1, 5, 20))
    config.log.every_steps = 1


def apply_variants(
    config: ConfigDict, variant: str, methods: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Applies one method (the first of `methods` by default), then 'smoke' if it is named.

    Args:
      config: changed in place and returned.
      variant: nothing, 'METHOD', 'smoke' or 'METHOD-smoke'.
      methods: the changes that each method makes.

    Raises:
      ConfigError: if a name is unknown; the sentence names the nearest one.
    """
    names = [name for name in variant.split("-") if name]
    options = (*methods, "smoke")
    for name in names:
        if name not in options:
            nearest = difflib.get_close_matches(name, options, 1, 0.0)[0]
            raise ConfigError(
                f"{name!r} is no variant of this configuration ({', '.join(options)}): "
                f"did you mean ':{nearest}'?"
            )
    chosen = [name for name in names if name != "smoke"] or [next(iter(methods))]
    if len(chosen) > 1:
        raise ConfigError(
            f"variant {variant!r} names {len(chosen)} methods: name one, and at most 'smoke' "
            f"beside it, for example ':{chosen[0]}-smoke'."
        )
    methods[chosen[0]](config)
    if "smoke" in names:
        smoke(config)
    return config
