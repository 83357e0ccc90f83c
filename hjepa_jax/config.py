"""The base configuration: every field, its default and its meaning (SIGReg's: config_sigreg.py).

The files in `configs/` are small deltas of `base_config()`; `config_check.py` validates the result.
A field set to None means "not used" or "derived", as its comment says.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from hjepa_jax.config_sigreg import optional, sigreg_section, spectral_section

# What functions take: ml_collections types every field as a union, which no use would satisfy.
Config: TypeAlias = Any


def _data() -> ConfigDict:
    return ConfigDict(
        {
            # 'digits' (embedded), 'cifar10', 'cifar100', 'folder', or 'tfds:<name>'.
            "name": "digits",
            # Folder or archive that holds the data; not used by 'digits'.
            "root": optional(str),
            # Splits used for training (self-supervised) and for the evaluation's test set.
            "train_split": "train",
            "test_split": "test",
            # Use only the first N images of a seeded shuffle of the split; None = all.
            "max_train_images": optional(int),
            "max_test_images": optional(int),
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
            "eval_resize": optional(int),
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
            # Residual blocks of each stage: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.
            "stage_blocks": (2, 2, 2, 2),
            # 'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, max-pool).
            "stem": "cifar",
            # 'tokens' (feature map as tokens) or 'global' (average pool, then Linear).
            "mode": "tokens",
            # tokens: stage tapped ('layer2', 'layer3', 'layer4'), channels per token, and the side
            # of the token grid after adaptive average pooling (None = as the stage gives it).
            "token_layer": "layer3",
            "token_dim": 32,
            "token_hw": optional(int),
            # Half of the channels of each token are position q, half momentum p: z = [q | p].
            "split_qp": True,
            # global: dimension of the embedding.
            "embed_dim": 2048,
            # 'identity' or 'mlp' (Linear, BatchNorm, ReLU, Linear).
            "projector": "identity",
            "projector_hidden": 2048,
            "projector_dim": 2048,
            # 'blocks' keeps only the inputs of the residual blocks for the backward pass, which
            # computes what is inside them again: less memory, a third more work; 'none' keeps all.
            "remat": "none",
            # Batch normalisation in training by the statistics of the whole batch ('global') or of
            # each device's share of it ('local': less waiting, but the result depends on the
            # number of devices). The running statistics are the mean over devices.
            "batch_norm": "global",
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
            "q_pr_floor": optional(float, 0.12),
            "p_pr_floor": optional(float, 0.16),
            "q_eigmax_ceiling": optional(float, 0.35),
            "p_eigmax_ceiling": optional(float, 0.30),
        }
    )


def _parity() -> ConfigDict:
    # Each True reproduces one behaviour of the published scripts where ours differs (see
    # docs/parity.md); all False is what the method's mathematics says.
    return ConfigDict(
        {
            # residual_scale grows at the start of each epoch instead of every step.
            "epochwise_residual_warmup": False,
            # The backward prediction also flows forward in time.
            "forward_directions_only": False,
            # The variance floor counts q alone.
            "q_variance_floor_only": False,
            # The predictor's gradient is neither clipped nor counted in the norm.
            "unclipped_predictor": False,
            # The predictor's learning rate decays to the floor of the main one.
            "shared_lr_floor": False,
            # The generic leapfrog differentiates through the previous kick.
            "reference_leapfrog": False,
            # Grid spectra read the flat state without regard to split_qp.
            "reference_layout": False,
        }
    )


def _train() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 30,
            # Stop after this many steps even if epochs are left; None = no limit.
            "max_steps": optional(int),
            "lr": 5e-4,
            # Learning rate of the predictor (potential); None = lr.
            "predictor_lr": optional(float),
            "weight_decay": 5e-4,
            "b1": 0.9,
            "b2": 0.999,
            "adam_eps": 1e-8,
            # Global gradient norm; None = no clipping.
            "grad_clip": optional(float, 1.0),
            # Linear warm-up from warmup_init_ratio * lr, then cosine to min_lr_ratio * lr.
            "warmup_epochs": 10.0,
            "warmup_init_ratio": 0.01,
            "min_lr_ratio": 0.001,
            # Workdir of a run to start from: its parameters and batch statistics, no more.
            "init_from": optional(str),
            # A loss or gradient that is NaN or infinite: 'stop' with an explanation, or 'skip' the
            # batch, at most so many in a row; the state before it is kept in both cases.
            "on_nonfinite": "stop",
            "max_skips_in_a_row": 5,
            # Micro-batches that a step encodes in turn, to save memory; 1 = the batch at once. The
            # loss is that of the whole batch; batch normalisation is over each micro-batch.
            "accumulation": 1,
            # Split the optimiser's moments over the devices instead of copying them to each.
            "shard_optimizer": False,
            # Compile the step without optimising it: a slower step, for runs of a few steps.
            "fast_compile": False,
        }
    )


def _evaluation() -> ConfigDict:
    return ConfigDict(
        {
            # Part of the state evaluated: 'q', 'p' or 'qp' (split_qp), else 'qp'.
            "variant": "q",
            # Coordinates of the state: 'raw' as encoded, 'sqrt_h' as HamSIGReg's H^{1/2} z.
            "coordinates": "raw",
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
            # During training: kNN at headline_k every so many epochs and at the end, on at most
            # `online_images` images of each split; None = never.
            "online_every_epochs": optional(float),
            "online_images": 5000,
            # During training: a linear probe of the variant, trained on the detached states of the
            # training batches with probe_lr and probe_weight_decay, and logged beside the loss.
            "online_probe": False,
            # Also evaluate raw pixels (averaged down to at most 32 x 32) as if an encoder.
            "pixel_baseline": False,
            # Also evaluate the encoder at its random initialisation.
            "random_baseline": True,
        }
    )


def base_config() -> Config:
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
            "sigreg": sigreg_section(),
            "spectral": spectral_section(),
            "parity": _parity(),
            "train": _train(),
            "evaluation": _evaluation(),
            "checkpoint": {
                # Steps between checkpoints; None = once an epoch.
                "every_steps": optional(int),
                "keep_last": 2,
                # Beside the newest, keep the best so many by a logged metric at the step saved, or
                # by 'online/knn_top1' (steps without it rank last); 'min' or 'max' is best.
                "keep_best": 0,
                "best_metric": "total",
                "best_mode": "min",
            },
            "log": {
                # Steps between log lines.
                "every_steps": 10,
            },
        }
    )


def view_sizes(config: Config) -> dict[str, tuple[int, int]]:
    """Returns (number, side in pixels) of each kind of views that a batch has."""
    data = config.data
    sizes = {"global_views": (data.num_global_views, data.image_size)}
    if data.num_local_views:
        sizes["local_views"] = (data.num_local_views, data.local_size)
    return sizes


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the whole batches in one epoch (the last partial batch is dropped)."""
    return num_images // batch_size


def total_steps(config: Config, num_images: int) -> int:
    """Returns the optimiser steps of a whole run."""
    steps = math.ceil(config.train.epochs * steps_per_epoch(num_images, config.data.batch_size))
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)
