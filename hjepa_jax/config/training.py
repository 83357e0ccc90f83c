"""The sections `model`, `train`, `evaluation`, `checkpoint` and `log`."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from hjepa_jax.config.fields import FIXED, FREE, FREE_WITHOUT_PROBE, Condition, field
from hjepa_jax.config.parts import method_part

Corruption: TypeAlias = Literal["gray", "noise", "blur", "shift", "contrast", "occlusion"]

Tracker: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]

_MLP = Condition(lambda c: c.model.projector == "mlp", "config.model.projector='mlp'")
_PREDICTOR = Condition(
    lambda c: method_part(c).trains_predictor(c),
    "a config.method whose predictor has parameters, as 'hjepa'",
)
_COORDINATES = Condition(
    lambda c: bool(method_part(c).coordinate_fields),
    "a config.method whose loss transforms the states, as 'hamsigreg'",
)
_SKIPS = Condition(lambda c: c.train.on_nonfinite == "skip", "config.train.on_nonfinite='skip'")
_ONLINE = Condition(
    lambda c: c.evaluation.online_every_epochs is not None, "config.evaluation.online_every_epochs"
)
_FOLDS = Condition(
    lambda c: len(c.evaluation.probe_lr_sweep) > 0, "config.evaluation.probe_lr_sweep"
)
_SHOTS = Condition(lambda c: len(c.evaluation.few_shot) > 0, "config.evaluation.few_shot")
_WARMUP = Condition(lambda c: c.train.warmup_epochs > 0, "config.train.warmup_epochs above 0")
_BEST = Condition(lambda c: c.checkpoint.keep_best > 0, "config.checkpoint.keep_best")
_RATIO = {"at_least": 0.0, "at_most": 1.0}
# Above this, float32 rounds to 1, and Adam's bias correction divides by zero.
_BELOW_ONE = {"at_least": 0.0, "at_most": 0.999999}
# A larger rate overflows float32; mere divergence is reported by the training itself.
_LARGEST_RATE = 1e20


@dataclasses.dataclass(frozen=True)
class Model:
    """The encoder, its state, the projector and the arithmetic."""

    encoder: str = field(
        "resnet",
        "'resnet', or a class of your own, 'module.path:Class'.",
        aliases="backbone arch architecture network model_name",
    )
    split_qp: bool = field(
        True, "Half of each token's channels is position q, half momentum p: z = [q | p]."
    )
    projector: Literal["identity", "mlp"] = field(
        "identity",
        "'identity' or 'mlp' (Linear, BatchNorm, ReLU, Linear).",
        aliases="proj proj_head projection_head",
    )
    projector_hidden: int = field(
        2048,
        "Hidden units of the projector.",
        above=0,
        at_most=2**20,
        used=_MLP,
        aliases="proj_hidden_dim projector_hidden_dim",
    )
    projector_dim: int = field(
        2048,
        "Outputs of the projector.",
        above=0,
        at_most=2**20,
        used=_MLP,
        aliases="proj_dim proj_output_dim",
    )
    batch_norm: Literal["global", "local"] = field(
        "global",
        "Batch statistics over the full batch ('global'), or over each device's share ('local': "
        "less synchronization, but the result depends on the number of devices).",
        aliases="sync_bn sync_batch_norm",
    )
    compute_dtype: Literal["bfloat16", "float32"] = field(
        "bfloat16",
        "Data type of the encoder's arithmetic; parameters and losses are float32.",
        auto=True,
        aliases="dtype precision amp mixed_precision bf16 fp16",
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The optimization."""

    epochs: int = field(
        30,
        "Training epochs.",
        above=0,
        at_most=10**6,
        hint="for part of an epoch set config.train.max_steps",
        auto=True,
        aliases="num_epochs max_epochs n_epochs total_epochs",
    )
    max_steps: int | None = field(
        None,
        "Stop after this many steps, even if epochs remain; None = no limit.",
        above=0,
        aliases="steps num_steps iterations max_iters num_iterations total_steps",
    )
    lr: float = field(
        5e-4,
        "Learning rate.",
        at_least=1e-12,
        at_most=_LARGEST_RATE,
        aliases="learning_rate base_lr rate peak_lr max_lr",
    )
    predictor_lr: float | None = field(
        None,
        "Learning rate of the predictor (potential); None = lr.",
        at_least=1e-12,
        at_most=_LARGEST_RATE,
        used=_PREDICTOR,
        aliases="h_lr predictor_learning_rate",
    )
    weight_decay: float = field(5e-4, "Decoupled weight decay.", at_least=0, aliases="wd decay l2")
    b1: float = field(
        0.9, "Adam's decay of the mean gradient.", aliases="beta1 betas momentum", **_BELOW_ONE
    )
    b2: float = field(
        0.999, "Adam's decay of the mean squared gradient.", aliases="beta2", **_BELOW_ONE
    )
    adam_eps: float = field(
        1e-8,
        "Adam's epsilon, added to the square root.",
        at_least=1e-16,
        at_most=1,
        aliases="eps epsilon",
    )
    grad_clip: float | None = field(
        1.0,
        "Largest global gradient norm; None = no clipping.",
        at_least=1e-6,
        aliases="clip clip_norm max_grad_norm gradient_clip_val clip_grad grad_clip_norm",
    )
    warmup_epochs: float = field(
        10.0,
        "Epochs of linear warm-up from warmup_init_ratio * lr.",
        at_least=0,
        auto=True,
        aliases="warmup warmup_steps num_warmup_epochs",
    )
    warmup_init_ratio: float = field(
        0.01, "Initial learning rate as a fraction of lr.", used=_WARMUP, **_RATIO
    )
    min_lr_ratio: float = field(
        0.001,
        "Final learning rate of the cosine as a fraction of lr.",
        aliases="min_lr final_lr eta_min",
        **_RATIO,
    )
    init_from: str | None = field(
        None,
        "Workdir of a run whose parameters and batch statistics initialize this one.",
        aliases="checkpoint pretrained weights load_from init_checkpoint",
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        "stop",
        "On a NaN or infinite loss or gradient: 'stop', or 'skip' the batch; the state from before "
        "it is kept.",
        resume=FREE,
    )
    max_skips_in_a_row: int = field(
        5, "Maximum number of batches skipped in a row.", above=0, used=_SKIPS, resume=FREE
    )
    accumulation: int = field(
        1,
        "Micro-batches that a step encodes one after the other, to save memory; batch "
        "normalization is over each.",
        above=0,
        aliases="accumulate accum_steps grad_accum accumulate_grad_batches "
        "gradient_accumulation_steps accum_iter",
    )
    shard_optimizer: bool = field(
        False,
        "Shard the optimizer's moments over the devices instead of replicating them.",
        resume=FREE,
        aliases="zero fsdp",
    )
    steps_per_dispatch: int | None = field(
        None,
        "Steps that an accelerator takes in one call, without the host in between; None = 8 if the "
        "images stay on it (data.resident_mb), else 1. A call never spans a step after which "
        "something is logged, saved, or evaluated.",
        above=0,
        at_most=1000,
        resume=FREE,
        aliases="scan_steps",
    )
    fast_compile: bool = field(
        False, "Compile the step without optimization: slower steps, for runs of a few steps."
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measurements on frozen features, during and after training."""

    state_part: Literal["q", "p", "qp"] = field(
        "q",
        "Part of the state to evaluate; must be 'qp' without split_qp.",
        resume=FREE_WITHOUT_PROBE,
    )
    coordinates: Literal["raw", "sqrt_h"] = field(
        "raw",
        "The state 'raw' as encoded, or 'sqrt_h' as HamSIGReg's H^{1/2} z.",
        used=_COORDINATES,
    )
    all_state_parts: bool = field(True, "Also kNN and probe of q, p and qp; needs split_qp.")
    batch_size: int = field(
        512, "Images per forward pass of feature extraction.", above=0, at_most=65536, auto=True
    )
    knn_k: tuple[int, ...] = field(
        (1, 5, 10, 20, 50, 100, 200),
        "Values of k; those larger than the training set are skipped.",
        above=0,
        nonempty=True,
        aliases="k knn n_neighbors num_neighbors",
    )
    headline_k: int = field(20, "The k reported in tables.", above=0)
    knn_block: int = field(
        8192,
        "Training rows that kNN compares at a time; affects memory, not the result.",
        above=0,
        at_most=2**20,
    )
    probe_epochs: int = field(50, "Epochs of the linear probe.", above=0, at_most=100_000)
    probe_batch_size: int = field(256, "Batch size of the linear probe.", above=0, at_most=65536)
    probe_lr: float = field(
        1e-3,
        "Learning rate of the linear probe.",
        at_least=1e-12,
        at_most=1e3,
        resume=FREE_WITHOUT_PROBE,
        aliases="probe_learning_rate linear_lr",
    )
    probe_weight_decay: float = field(
        1e-6, "Weight decay of the linear probe.", at_least=0, resume=FREE_WITHOUT_PROBE
    )
    probe_lr_sweep: tuple[float, ...] = field(
        (),
        "Further learning rates to try; the best in cross-validation over "
        "probe_folds is reported. () = the published protocol.",
        at_least=1e-12,
        at_most=1e3,
    )
    probe_folds: int = field(
        5, "Folds of the cross-validation.", at_least=2, at_most=1000, used=_FOLDS
    )
    few_shot: tuple[int, ...] = field(
        (), "Few-shot probes: training images per class; () = none.", above=0
    )
    few_shot_trials: int = field(
        5, "Random draws to average over.", above=0, at_most=10_000, used=_SHOTS
    )
    robustness: tuple[Corruption, ...] = field(
        (),
        "Corruptions of the test images on which kNN and probe are also tested.",
    )
    spectrum_samples: int = field(5000, "Samples for the covariance spectrum.", at_least=2)
    spectrum_top: int = field(256, "Number of eigenvalues to keep.", above=0)
    alignment_samples: int = field(
        5000, "Pairs of augmented views for alignment and uniformity.", at_least=2
    )
    max_pairs: int = field(
        20000,
        "Maximum number of random pairs for cosine similarities and for uniformity.",
        above=0,
        at_most=10**7,
    )
    seed: int = field(
        0,
        "Seed of the probe, subsamples, random pairs and the images shown in figures.",
        at_least=0,
        at_most=2**32 - 1,
    )
    online_every_epochs: float | None = field(
        None,
        "During training: epochs between kNN evaluations at headline_k, plus one at the end; None "
        "= never.",
        above=0,
        aliases="eval_every eval_freq eval_interval check_val_every_n_epoch",
    )
    online_images: int = field(
        5000, "Maximum number of images per split for it.", above=0, used=_ONLINE
    )
    online_holdout: int | None = field(
        None,
        "Labeled training images (stratified by class) to hold out of training; online evaluation "
        "tests on them instead of the test split. None = test on the test split.",
        above=0,
        used=_ONLINE,
        resume=FIXED,
    )
    online_probe: bool = field(
        False,
        "During training: a linear probe of state_part on the training batches' detached "
        "states, logged beside the loss.",
        resume=FREE_WITHOUT_PROBE,
    )
    pixel_baseline: bool = field(
        False, "Also evaluate raw pixels (averaged down to at most 32 x 32) as features."
    )
    reference_evaluation: bool = field(
        False,
        "As published: kNN ranks ties, and classes without a vote, by class number, and random "
        "pairs repeat.",
    )
    random_baseline: bool = field(True, "Also evaluate the randomly initialized encoder.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Saving of checkpoints, and which are kept."""

    every_steps: int | None = field(
        None,
        "Steps between checkpoints; None = once per epoch.",
        above=0,
        auto=True,
        aliases="save_every save_freq save_steps save_interval checkpoint_every",
    )
    every_minutes: float | None = field(
        None,
        "Also save when this many minutes have passed since the last checkpoint, in a run of "
        "several processes at the next log line; None = never.",
        above=0,
    )
    keep_last: int = field(
        2,
        "Number of newest checkpoints to keep.",
        above=0,
        aliases="max_to_keep save_total_limit keep",
    )
    keep_best: int = field(
        0,
        "Number of best checkpoints to keep in addition to the newest.",
        at_least=0,
        aliases="save_top_k",
    )
    best_metric: str = field(
        "total",
        "Metric that ranks them: one logged at the saved step, by name or tag ('total', "
        "'loss/total'), or 'online/knn_top1' (steps without it rank last).",
        used=_BEST,
        aliases="monitor",
    )
    best_mode: Literal["min", "max"] | None = field(
        None,
        "Whether lower or higher is better; None = the metric's known direction (losses, "
        "accuracies).",
        used=_BEST,
    )


@dataclasses.dataclass(frozen=True)
class Log:
    """What is logged."""

    every_steps: int = field(
        10,
        "Steps between log lines.",
        above=0,
        auto=True,
        aliases="log_every log_interval log_every_n_steps print_freq logging_steps log_freq",
    )
    writers: tuple[Tracker, ...] = field(
        ("tensorboard",),
        "Where metrics go beside `metrics.jsonl`: 'tensorboard', 'wandb' (Weights & Biases), "
        "'mlflow'.",
        aliases="logger loggers tracker",
    )
