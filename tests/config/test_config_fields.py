"""Every field of the configuration: odd values are refused with a sentence that names it."""

import json
import math

import numpy as np
import pytest

from hjepa_jax.config import base_config, files, may_change_on_resume, resolve, rows
from hjepa_jax.config.checks import typed
from hjepa_jax.config.settings import schema
from hjepa_jax.config.unknown import unknown_field
from hjepa_jax.config.values import coerce, parse, problems_of
from hjepa_jax.errors import ConfigError
from hjepa_jax.interop.published.translate import config_from_torch
from hjepa_jax.recipes import cifar100, quickstart

ROWS = rows().values()
NUMBERS = [row for row in ROWS if row.kind in (int, float)]
NEVER_A_NUMBER = (math.nan, math.inf, -math.inf, -(2**70), "3", "", True, 1j, {}, object())
WRONG = {
    int: (*NEVER_A_NUMBER, 1.5, np.float32(1), 2**70, 10**12),
    float: (*NEVER_A_NUMBER, np.float32(1), 2.0**70, 10**5000),
    bool: (0, 1, "True", math.nan, (), []),
    str: (0, 1.5, True, b"x", "", "  ", "a\0b", "a\nb", ("x",)),
}


def refused(row, value) -> None:
    """Checks that a value is refused by exactly one sentence that names the field."""
    (sentence,) = problems_of(row, value)
    assert sentence.startswith(f"config.{row.path} is ")
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence
    assert len(sentence) < 500


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_odd_values_of_every_field_are_refused(row) -> None:
    odd = WRONG[row.kind]
    if row.length is None:
        # A large learning rate is a finite number: training says what becomes of it.
        for value in odd if not row.path.endswith(("train.lr", "predictor_lr")) else odd[:10]:
            refused(row, value)
        refused(row, (row.default,))
        refused(row, [])
    else:
        good = row.default or (5,)
        for value in (*odd, None):
            refused(row, (value, *good[1:]))
        for value in (
            None,
            0.3,
            "x",
            {},
            good[0],
            (good,),
            *([good[1:]] if row.length != "any" else []),
        ):
            if not (value is None and row.optional):
                refused(row, value)
        if row.length != "any":
            refused(row, (*good, good[-1]))
    if not row.optional:
        refused(row, None)


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.path)
def test_bounds_of_every_number(row) -> None:
    spec, step = row.spec, 1 if row.kind is int else 1e-9

    def many(value):
        value = row.kind(value)
        return (
            value if row.length is None else (value,) * (1 if row.length == "any" else row.length)
        )

    assert spec.at_most is not None
    assert spec.at_most < 1e21
    low = spec.above if spec.at_least is None else spec.at_least
    assert low is not None
    refused(row, many(low if spec.at_least is None else low - max(step, abs(low) * 1e-6)))
    refused(row, many(spec.at_most + max(step, abs(spec.at_most) * 1e-6)))
    for good in ([] if spec.at_least is None else [low], [spec.at_most]):
        for value in good:
            assert list(problems_of(row, many(value))) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_defaults_are_allowed_and_survive_text_and_json(row) -> None:
    assert list(problems_of(row, row.default)) == []
    if not (row.kind is str and row.default is None):
        assert coerce(row, parse(row, str(row.default))) == row.default
    assert coerce(row, json.loads(json.dumps(row.default))) == row.default
    if row.optional:
        assert parse(row, "None") is None
        assert list(problems_of(row, None)) == []


def test_lists_and_whole_numbers_are_taken_as_meant() -> None:
    config = base_config()
    config.data.global_scale = [0.5, 1]
    config.train.lr = 1
    resolve(config)
    assert files.from_json(typed(config).to_json()).data.global_scale == (0.5, 1.0)
    with pytest.raises(ConfigError, match=r"config\.train is 3, but it is a section"):
        files.merge(base_config(), {"train": 3})
    with pytest.raises(ConfigError, match="cannot be read"):
        files.from_json("{")


def changed(config, **fields):
    """Returns the configuration with fields set, 'section__name' each."""
    for path, value in fields.items():
        target, (*parents, name) = config, path.split("__")
        for parent in parents:
            target = target[parent]
        target[name] = value
    return config


@pytest.mark.parametrize(
    ("variant", "fields", "words"),
    [
        ("", {"train__epochs": 3}, "epochs is 3, .*train.warmup_epochs=10 and .*residual_scale"),
        ("", {"train__warmup_epochs": 30.0}, "train.warmup_epochs=30"),
        ("sigreg", {"sigreg__weight_warmup_epochs": 30.0}, "sigreg.weight_warmup_epochs=30"),
        ("ham_learnable", {"hamsigreg__base_ramp_epochs": 29.5}, "hamsigreg.base_ramp_epochs=29.5"),
        ("ham_chain", {"hamsigreg__identity_epochs": 30.0}, "hamsigreg.identity_epochs=30"),
        ("ham_learnable", {"hamsigreg__learnable_ramp_epochs": 31.0}, "learnable_ramp_epochs=31"),
        ("sigreg", {"data__num_global_views": 1}, "num_global_views is 1 .*exactly 0"),
        ("sigreg", {"sigreg__loss_form": "convex", "sigreg__weight": 2.0}, "weight.* 1 or less"),
        ("", {"data__mean": (129.3, 124.1, 112.4)}, r"data.mean is .*between 0 and 1 \(.*by 255"),
        ("", {"data__std": (68.2, 65.4, 70.4)}, r"data.std is .*\(.*divide by 255"),
        ("", {"data__std": (0.0, 0.2, 0.2)}, "data.std is .*between 0.001 and 1"),
        ("", {"dynamics__base_coeff": 10000.0}, "dt is 0.05.*base_coeff=10000.*below 0.02"),
        ("", {"dynamics__dt": 6.5}, "dt is 6.5.*unstable"),
        ("", {"dynamics__integrator": "yoshida4", "dynamics__dt": 4.0}, "yoshida4.*unstable.*3.7"),
        ("", {"dynamics__hamiltonian": "quadratic", "dynamics__dt": 2.0}, "unstable.*below 2"),
        ("", {"dynamics__damping": 1000.0}, "damping is 1000.* 100 or less"),
        (
            "",
            {"dynamics__reversible": True, "dynamics__damping": 50.0},
            r"damping=50.0 running the flow .* exp\(5\): set the damping to 40 or less, or ",
        ),
        ("mlp", {"dynamics__reversible": True}, "reversible is set .*predictor='hamiltonian' with"),
        (
            "",
            {"dynamics__reversible": True, "dynamics__integrator": "yoshida4"},
            "reversible is set .*integrator='leapfrog'",
        ),
        (
            "",
            {"dynamics__reversible": True, "dynamics__hamiltonian": "learnable"},
            "reversible is set .*hamiltonian='separable'",
        ),
        ("", {"data__num_global_views": 1}, "num_global_views is 1, but .*'first_two'.*2 or more"),
        (
            "",
            {"data__num_global_views": 1, "loss__pairing": "all_global"},
            "num_global_views is 1, but .*'all_global'.*2 or more",
        ),
        ("", {"data__num_local_views": 4}, "num_local_views is 4.*predicts no local view"),
        ("", {"data__num_local_views": 4, "loss__pairing": "all_global"}, "predicts no local view"),
        ("", {"data__num_global_views": 3}, "num_global_views is 3.*only two.*'all_global'"),
        ("mlp", {"dynamics__hamiltonian": "quadratic"}, "'quadratic'.*no parameters to match"),
        ("", {"data__eval_resize": 8}, "eval_resize is 8.*32 or more"),
        ("", {"data__max_train_images": 100}, "batch_size is 512 .*100 or less"),
        ("", {"data__max_train_images": 600, "evaluation__few_shot": (700,)}, "few_shot is .*600"),
        (
            "",
            {"evaluation__online_every_epochs": 1.0, "evaluation__online_images": 10},
            "online_images is 10, .*headline_k=20",
        ),
        ("sigreg", {"sigreg__subsample": 513}, "subsample is 513.*512 or less"),
        ("", {"train__weight_decay": 1e5}, "weight_decay is 100000.*past zero"),
        ("", {"evaluation__knn_k": (1, 20, 20)}, "knn_k is .*repeat"),
        ("identity", {"dynamics__residual_scale": 1.0}, "residual_scale is set .*no effect"),
        ("identity", {"dynamics__steps": 3}, "steps is set .*no effect"),
        ("sigreg", {"parity__forward_directions_only": True}, "no effect.*'hjepa'"),
        ("", {"parity__reference_leapfrog": True}, "reference_leapfrog is set .*no effect"),
        ("", {"parity__shared_lr_floor": True}, "shared_lr_floor is set .*predictor_lr"),
        ("", {"evaluation__few_shot_trials": 3}, "few_shot_trials is set .*evaluation.few_shot"),
        ("", {"evaluation__probe_folds": 3}, "probe_folds is set .*probe_lr_sweep"),
        (
            "",
            {
                "parity__reference_leapfrog": True,
                "dynamics__hamiltonian": "quadratic",
                "dynamics__damping": 0.1,
            },
            "damping is 0.1, which the published leapfrog",
        ),
    ],
)  # fmt: skip
def test_fields_that_make_nonsense_together_are_one_sentence(variant, fields, words) -> None:
    config = changed(cifar100.get_config(variant), **fields)
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("", {"data__num_global_views": 4, "loss__pairing": "all_global"}),
        ("", {"data__num_local_views": 4, "loss__pairing": "local_to_global"}),
        (
            "",
            {
                "data__num_global_views": 1,
                "data__num_local_views": 2,
                "loss__pairing": "local_to_global",
            },
        ),
        ("sigreg", {"data__num_global_views": 1, "data__num_local_views": 1}),
        ("sigreg", {"data__num_global_views": 4, "data__num_local_views": 6}),
        ("mlp", {"dynamics__steps": 4, "dynamics__dt": 0.1}),
        ("", {"dynamics__dt": 6.0}),
        ("sigreg", {"sigreg__loss_form": "convex", "sigreg__weight": 1.0}),
        ("ham_learnable", {"hamsigreg__learnable_ramp_epochs": 30.0}),
    ],
)
def test_what_is_unusual_but_sensible_is_allowed(variant, fields) -> None:
    resolve(changed(cifar100.get_config(variant), **fields))


def test_a_run_cut_short_may_still_be_evaluated() -> None:
    config = changed(cifar100.get_config(), train__epochs=3)
    resolve(config, training=False)


def test_what_a_resume_may_change() -> None:
    config = quickstart.get_config()
    free = {path for path in rows() if may_change_on_resume(path, typed(config))}
    assert free >= {"data.cache_mb", "data.root", "evaluation.state_part", "log.every_steps"}
    assert not free & {"seed", "train.lr", "train.epochs", "data.batch_size", "resnet.width"}
    config.evaluation.online_probe = True
    assert free - {path for path in rows() if may_change_on_resume(path, typed(config))} == {
        f"evaluation.{name}"
        for name in ("online_probe", "features", "state_part", "probe_lr", "probe_weight_decay")
    }
    own = {path for path, row in rows().items() if row.spec.own}
    assert own <= free


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("train.learning_rate", "train.lr"),
        ("train.batch_size", "data.batch_size"),
        ("train.warmup", "train.warmup_epochs"),
        ("model.sync_bn", "model.batch_norm"),
        ("train.beta1", "train.b1"),
        ("train.optim", "train.optimizer"),
        ("evaluation.probe_learning_rate", "evaluation.probe_lr"),
        ("epochs", "train.epochs"),
        ("lr", "train.lr"),
        ("data.image_siz", "data.image_size"),
        *((word, "train.lr") for word in ("learningRate", "LR", "optim.base_lr", "train.max_lr")),
        *((word, "data.batch_size") for word in ("batch", "bs", "batchSize", "train.batch_size")),
        *((word, "train.weight_decay") for word in ("wd", "optimizer.weight_decay")),
        *((word, "train.epochs") for word in ("num_epochs", "trainer.max_epochs", "data.epochs")),
        *((word, "model.encoder") for word in ("backbone", "arch", "model.architecture")),
        *((word, "data.num_workers") for word in ("workers", "train.num_workers")),
        *((word, "seed") for word in ("train.seed", "random_seed", "data.rng_seed")),
        *((word, "model.compute_dtype") for word in ("precision", "amp", "train.precision")),
        *((word, "data.name") for word in ("dataset", "data.dataset")),
        *((word, "data.root") for word in ("data_dir", "data.path", "data_path")),
        *((word, "train.max_steps") for word in ("total_steps", "train.steps", "max_iters")),
        *(
            (word, "train.accumulation")
            for word in ("accumulate_grad_batches", "gradient_accumulation_steps")
        ),
        *((word, "train.grad_clip") for word in ("gradient_clip_val", "train.clip_grad")),
        *((word, "checkpoint.every_steps") for word in ("save_every", "checkpoint.save_steps")),
        *((word, "log.every_steps") for word in ("log_every_n_steps", "print_freq")),
        *((word, "evaluation.knn_k") for word in ("n_neighbors", "evaluation.k")),
        ("sigreg.lambda", "sigreg.weight"),
        ("data.img_size", "data.image_size"),
        ("data.augment.hflip", "data.augment.flip_probability"),
        ("train.warmup_steps", "train.warmup_epochs"),
        ("evaluation.bs", "data.batch_size"),
        ("proj_dim", "model.projector_dim"),
    ],
)
def test_suggestions_know_the_fields_words(asked, meant) -> None:
    assert (unknown_field(schema(), asked) or "").endswith(f"did you mean config.{meant}?")


def test_no_word_of_other_programs_means_two_fields_of_a_section() -> None:
    seen: dict[tuple[str, str], str] = {}
    for path, row in rows().items():
        for word in [path.rpartition(".")[2], *row.spec.aliases.split()]:
            key = (path.rpartition(".")[0], word)
            assert key not in seen, f"{word} means {seen[key]} and {path}"
            seen[key] = path


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ("devices", "CUDA_VISIBLE_DEVICES"),
        ("train.gpus", "CUDA_VISIBLE_DEVICES"),
        ("trainer.num_nodes", "--num_processes"),
        ("log.output_dir", "give --workdir"),
        ("train.resume_from", "give --resume=RUN"),
        ("train.lr_scheduler", "cosine"),
        ("loss.temperature", "has a temperature"),
        ("model.num_classes", "the data has the classes"),
    ],
)
def test_what_is_no_field_here_gets_advice(asked, advice) -> None:
    told = unknown_field(schema(), asked) or ""
    assert told.startswith(f"config.{asked} is not a field of the configuration: ")
    assert advice in told


@pytest.mark.parametrize(
    ("path", "value", "end"),
    [
        ("train.lr", -1.0, "-1.0: it must be above 0."),
        ("train.epochs", 1.5, "whole number (for part of an epoch set config.train.max_steps)."),
        ("data.global_scale", (0.5, 2.0), "1 or less (a crop cannot be larger than the"),
        ("data.global_scale", (0.5, 0.1), "it must be (low, high) with low <= high."),
        ("sigreg.weight_warmup_epochs", -1.0, "-1.0: it must be 0 or more."),
        ("evaluation.spectrum_samples", 1, "it must be 2 or more."),
        ("hamsigreg.bins", 1, "it must be 2 or more."),
        ("train.b2", 1.0, "it must lie between 0 and 0.999999."),
        ("data.augment.blur_kernel", 4, "4: it must be odd."),
        ("data.augment.blur_sigma", (-2.0, -1.0), "each of its numbers must lie between 0.01 and"),
        ("resnet.stem", "resnet", "must be one of 'cifar', 'imagenet'; did you mean 'imagenet'?"),
        ("seed", 2**70, "it must be 4294967295 or less."),
        ("data.mean", (0.5, None, 0.5), "3 numbers, for example (0.5071, 0.4867, 0.4408)."),
    ],
)  # fmt: skip
def test_sentences_about_values(path, value, end) -> None:
    (sentence,) = problems_of(rows()[path], value)
    assert end in sentence


def test_an_unknown_data_set_is_named_with_the_nearest() -> None:
    config = changed(cifar100.get_config(), data__name="cifar-100")
    with pytest.raises(ConfigError, match=r"'cifar-100', which is not one of .*'cifar100'"):
        resolve(config)
    resolve(changed(cifar100.get_config(), data__name="tfds:stl10"))


PUBLISHED = {
    "seed": 1,
    "data": {"batch_size": 8},
    "model": {"encoder_mode": "tokens", "split_qp": True},
    "hjepa": {"dt": 0.05},
    "train": {"epochs": 30, "lr": "1e-3"},
    "regularizer": {"q_logdet_floor": -1.5, "p_logdet_floor": -1.5},
}


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("train", "epochs", 1.5, "epochs is 1.5"),
        ("train", "lr", "much", "lr is 'much'"),
        ("train", "lr", math.nan, "train.lr is nan"),
        ("train", "weight_decay", -1, "weight_decay is -1"),
        ("train", "grad_clip", "x", "grad_clip is 'x'"),
        ("data", "batch_size", [8], r"batch_size is \[8\]"),
        ("data", "global_scale", 0.3, "global_scale is 0.3"),
        ("data", "global_scale", [0.3, None], "global_scale is .*None"),
        ("model", "split_qp", "yes", "split_qp is 'yes'"),
        ("hjepa", "dt", {}, "dt is {}"),
        ("hjepa", "method", 3, "method is 3"),
        ("hjepa", "residual_scale_warmup_epochs", "ten", "is 'ten'"),
        ("regularizer", "q_logdet_floor", None, "q_logdet_floor is None: it must be a number"),
        ("regularizer", "q_pr_norm_floor", "x", "q_pr_norm_floor is 'x'"),
        ("model", None, 3, "model is 3: it must be a section"),
        ("train", None, [1], r"train is \[1\]: it must be a section"),
        ("regularizer", None, None, "regularizer is None: it must be a section"),
        ("seed", None, 2**70, "seed is 1180591620717411303424"),
        ("seed", None, "one", "seed is 'one'"),
    ],
)
def test_odd_values_of_a_published_configuration_are_sentences(section, name, value, words) -> None:
    assert config_from_torch(PUBLISHED).train.lr == 1e-3
    odd = PUBLISHED | {section: value if name is None else PUBLISHED[section] | {name: value}}
    with pytest.raises(ConfigError, match=words) as caught:
        config_from_torch(odd)
    assert "\n" not in str(caught.value)


TEXTS = (
    "",
    " ",
    "nan",
    "-inf",
    "1e400",
    "9" * 5000,
    "x",
    "(",
    ")",
    "(1",
    "[1,]",
    "(,)",
    "None,None",
)
TEXTS += (
    "((1,2),3)",
    "{'a': 1}",
    "1;2",
    "١",
    "\0",
    "lambda: 0",
    "1e3",
    "-0",
    "True,False",
    "'",
    '"',
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_odd_texts_on_the_command_line_are_sentences_or_values(row) -> None:
    for text in TEXTS:
        said = ""
        try:
            for sentence in problems_of(row, coerce(row, parse(row, text))):
                said = sentence
        except ConfigError as error:
            said = str(error)
        assert len(said) < 600
        assert not said or said.startswith(f"config.{row.path} ")
