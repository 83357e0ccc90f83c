"""The section `evaluation`."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from hjepa_jax.config.fields import FIXED, FREE_WITHOUT_PROBE, Condition, field
from hjepa_jax.config.parts import method_part

Corruption: TypeAlias = Literal["gray", "noise", "blur", "shift", "contrast", "occlusion"]

_COORDINATES = Condition(
    lambda c: bool(method_part(c).coordinate_fields) or c.evaluation.posthoc is not None,
    "a config.method whose loss transforms the states, as 'hamsigreg', or fit an H afterwards by "
    "config.evaluation.posthoc",
)
_POSTHOC = Condition(
    lambda c: c.evaluation.coordinates != "raw",
    "config.evaluation.coordinates='sqrt_h' or 'both'",
)
_FITTED = Condition(
    lambda c: c.evaluation.posthoc == "learnable", "config.evaluation.posthoc='learnable'"
)
_ONLINE = Condition(
    lambda c: c.evaluation.online_every_epochs is not None, "config.evaluation.online_every_epochs"
)
_PROJECTOR = Condition(
    lambda c: c.model.projector != "identity", "config.model.projector='mlp' or 'halves'"
)
_FOLDS = Condition(
    lambda c: len(c.evaluation.probe_lr_sweep) > 0, "config.evaluation.probe_lr_sweep"
)
_LOGISTIC = Condition(
    lambda c: c.evaluation.logistic_probe, "config.evaluation.logistic_probe=True"
)
_SWEEP = Condition(
    lambda c: c.evaluation.logistic_probe and len(c.evaluation.logistic_l2) > 1,
    "config.evaluation.logistic_probe=True and several values in config.evaluation.logistic_l2",
)
_ATTENTIVE = Condition(
    lambda c: c.evaluation.attentive_probe, "config.evaluation.attentive_probe=True"
)
_SHOTS = Condition(lambda c: len(c.evaluation.few_shot) > 0, "config.evaluation.few_shot")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measurements on frozen features, during and after training."""

    features: Literal["encoder", "projector"] = field(
        "encoder",
        "Output that is evaluated, also online: the encoder's or the projector's.",
        used=_PROJECTOR,
        resume=FREE_WITHOUT_PROBE,
    )
    state_part: Literal["q", "p", "qp"] = field(
        "q",
        "Part of the state to evaluate; must be 'qp' without split_qp.",
        resume=FREE_WITHOUT_PROBE,
    )
    coordinates: Literal["raw", "sqrt_h", "both"] = field(
        "raw",
        "The state 'raw' as encoded, 'sqrt_h' as HamSIGReg's H^{1/2} z, or 'both', encoded once. "
        "With 'both', or with posthoc, online evaluation takes the raw state.",
        used=_COORDINATES,
        aliases="coord coords",
    )
    posthoc: Literal["diag", "chain", "chain_grid", "learnable"] | None = field(
        None,
        "Take an H of this hamsigreg.kind in place of the method's own; 'learnable' is fitted to "
        "the training features. None = the H of training.",
        used=_POSTHOC,
    )
    posthoc_steps: int = field(300, "Steps of the fit.", above=0, at_most=10_000, used=_FITTED)
    posthoc_lr: float = field(
        0.1, "Initial learning rate of the fit.", at_least=1e-12, at_most=1e3, used=_FITTED
    )
    posthoc_span: float = field(
        6.0, "Maximum log-range of the fitted spectrum.", at_least=1e-6, at_most=50, used=_FITTED
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
    knn_temperature: float = field(
        0.07,
        "Temperature T of the weighted kNN, whose neighbors vote with exp(cosine similarity / T).",
        at_least=1e-3,
        at_most=1e3,
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
    logistic_probe: bool = field(
        False, "Also multinomial logistic regression by L-BFGS, whose solution is unique."
    )
    logistic_l2: tuple[float, ...] = field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        "Penalties l2 / 2 |kernel|^2 to try, beside the mean cross-entropy (scikit-learn's C is "
        "1 / (N l2)); the best on held-out training images is fitted again to all.",
        at_least=1e-9,
        at_most=1e6,
        nonempty=True,
        used=_LOGISTIC,
        aliases="logistic_c l2_sweep",
    )
    logistic_holdout: float = field(
        0.2,
        "Share of the training images, stratified by class, that choose the penalty.",
        above=0,
        at_most=0.9,
        used=_SWEEP,
    )
    logistic_standardize: bool = field(
        True,
        "Divide each feature by its deviation over the training images, so that the penalty means "
        "the same for all of them; False = only center it, which the bias absorbs.",
        used=_LOGISTIC,
    )
    logistic_steps: int = field(
        500,
        "Maximum number of L-BFGS iterations per penalty.",
        above=0,
        at_most=100_000,
        used=_LOGISTIC,
    )
    attentive_probe: bool = field(
        False,
        "Also an attentive probe: a learned query pools the encoder's tokens by attention.",
    )
    attentive_epochs: int = field(
        20, "Epochs of the attentive probe.", above=0, at_most=100_000, used=_ATTENTIVE
    )
    attentive_lr: float = field(
        1e-3,
        "Initial learning rate of the attentive probe; batch size and weight decay are those of "
        "the linear one.",
        at_least=1e-12,
        at_most=1e3,
        used=_ATTENTIVE,
    )
    attentive_heads: int = field(
        8, "Heads of its attention.", above=0, at_most=1024, used=_ATTENTIVE
    )
    attentive_gb: float = field(
        8.0,
        "Maximum size of the training images' tokens, in GB of the host's memory.",
        above=0,
        used=_ATTENTIVE,
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
