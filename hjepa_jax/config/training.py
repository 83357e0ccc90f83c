"""The sections `model`, `train`, `checkpoint` and `log`."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from hjepa_jax.config.fields import FREE, Condition, field
from hjepa_jax.config.parts import method_part

ParameterKind: TypeAlias = Literal["biases", "norms"]
Tracker: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]

_PROJECTOR = Condition(
    lambda c: c.model.projector != "identity", "config.model.projector='mlp' or 'halves'"
)
_TWO_LAYERS = Condition(
    lambda c: c.model.projector != "identity" and not c.model.projector_widths,
    "config.model.projector='mlp' or 'halves', with config.model.projector_widths=()",
)
_PREDICTOR = Condition(
    lambda c: method_part(c).trains_predictor(c),
    "a config.method whose predictor has parameters, as 'hjepa'",
)
_ADAMW = Condition(lambda c: c.train.optimizer == "adamw", "config.train.optimizer='adamw'")
_LARS = Condition(lambda c: c.train.optimizer == "lars", "config.train.optimizer='lars'")
_SKIPS = Condition(lambda c: c.train.on_nonfinite == "skip", "config.train.on_nonfinite='skip'")
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
        "'resnet', 'vit', 'convnext', or a class of your own, 'module.path:Class'.",
        aliases="backbone arch architecture network model_name",
    )
    split_qp: bool = field(
        True, "Half of each token's channels is position q, half momentum p: z = [q | p]."
    )
    projector: Literal["identity", "mlp", "halves"] = field(
        "identity",
        "'identity'; 'mlp' (Linear layers, BatchNorm and ReLU between them); or 'halves', one such "
        "MLP for q and one for p, which keeps z = [q | p].",
        aliases="proj proj_head projection_head",
    )
    projector_hidden: int = field(
        2048,
        "Hidden units of a projector of two layers.",
        above=0,
        at_most=2**20,
        used=_TWO_LAYERS,
        aliases="proj_hidden_dim projector_hidden_dim",
    )
    projector_dim: int = field(
        2048,
        "Outputs of a projector of two layers.",
        above=0,
        at_most=2**20,
        used=_TWO_LAYERS,
        aliases="proj_dim proj_output_dim",
    )
    projector_widths: tuple[int, ...] = field(
        (),
        "Outputs of each of 1 to 4 layers of the projector; with 'halves', of q and p together; "
        "() = (projector_hidden, projector_dim).",
        above=0,
        at_most=2**20,
        repeats=True,
        used=_PROJECTOR,
        aliases="proj_layers projector_layers proj_widths",
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
    optimizer: Literal["adamw", "lars"] = field(
        "adamw", "'adamw', or 'lars' (layer-wise adaptive rates).", aliases="optim opt"
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
    weight_decay: float = field(
        5e-4,
        "Weight decay: decoupled in 'adamw', added to the gradient in 'lars'.",
        at_least=0,
        aliases="wd decay l2",
    )
    decay_exclude: tuple[ParameterKind, ...] = field(
        (),
        "Parameters without weight decay and, in 'lars', without the trust ratio: 'biases', and "
        "'norms' (scale and bias of normalizations).",
        aliases="no_decay exclude_from_decay exclude_bias_n_norm no_weight_decay",
    )
    b1: float = field(
        0.9, "Adam's decay of the mean gradient.", used=_ADAMW, aliases="beta1 betas", **_BELOW_ONE
    )
    b2: float = field(
        0.999,
        "Adam's decay of the mean squared gradient.",
        used=_ADAMW,
        aliases="beta2",
        **_BELOW_ONE,
    )
    adam_eps: float = field(
        1e-8,
        "Adam's epsilon, added to the square root.",
        at_least=1e-16,
        at_most=1,
        used=_ADAMW,
        aliases="eps epsilon",
    )
    momentum: float = field(0.9, "Momentum of LARS.", used=_LARS, **_BELOW_ONE)
    nesterov: bool = field(False, "Whether it is Nesterov's.", used=_LARS)
    trust_coefficient: float = field(
        0.001,
        "LARS scales the step of each array to this times the norm of the array.",
        above=0,
        at_most=1e3,
        used=_LARS,
        aliases="eta trust_coef lars_eta",
    )
    grad_clip: float | None = field(
        1.0,
        "Largest global gradient norm, before weight decay and trust ratios; None = no clipping.",
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
    keep_every_steps: int | None = field(
        None,
        "Save at every multiple of this many steps, and keep those checkpoints for good, beside "
        "the newest; None = none.",
        above=0,
        aliases="keep_every keep_period save_every_n_steps every_n_train_steps",
    )
    keep_every_epochs: float | None = field(
        None,
        "The same in epochs, rounded to whole steps; None = none.",
        above=0,
        aliases="keep_checkpoint_every_n_epochs every_n_epochs",
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
