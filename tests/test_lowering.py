"""Every compiled function lowers for GPUs and TPUs on a host that has neither.

The train step does so for a single device and for eight, of which nothing but the number is needed.
"""

import collections
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from hjepa_jax.config.checks import typed
from hjepa_jax.data.augmentation.device import ResidentImages, augment_on_device
from hjepa_jax.data.augmentation.parameters import PACKED
from hjepa_jax.evaluation import knn
from hjepa_jax.evaluation.probe import init_probe, train_probe
from hjepa_jax.kernels import batch_norm, build, characteristic_function, convolution, top_k
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.objectives.regularizers import orthonormal_projection
from hjepa_jax.objectives.sigreg import sigreg
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import with_dependency
from hjepa_jax.training.accumulation import scan_or_unroll
from hjepa_jax.training.prepare import PreparedRun, prepare, train_steps

# The foreign functions that a program may call, all of which JAX brings: linear algebra.
ALLOWED = {
    "cuda": {
        "cusolver_geqrf_ffi",
        "cusolver_orgqr_ffi",
        "cusolver_potrf_ffi",
    },
    "tpu": {"ProductOfElementaryHouseholderReflectors", "Qr"},
}
CALL = re.compile(r"custom_call @([\w.$]+)")
HOST = re.compile(r"callback|stablehlo\.(?:send|recv|infeed|outfeed)\b")
COLLECTIVE = re.compile(
    r"stablehlo\.(all_reduce|all_gather|reduce_scatter|all_to_all|collective_\w+)"
)
FLOAT64 = re.compile(r"\bf64\b|xf64>")


def shape(*sides: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, dtype)


def several(devices: int) -> AbstractMesh:
    """Returns the mesh of `sharding.data_mesh` over devices that this host does not have."""
    return AbstractMesh((devices,), (sharding.DATA_AXIS,), axis_types=(AxisType.Auto,))


def prepared(variant: str, mesh: Any = None, **fields: Any) -> PreparedRun:
    config = cifar100.get_config(f"{variant}-smoke")
    config.update_from_flattened_dict(fields)
    return prepare(typed(config), 64, mesh or sharding.data_mesh(jax.devices()[:1]), 10)


def on(place: NamedSharding, entry: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(entry.shape, entry.dtype, sharding=place)


def step(
    variant: str, devices: int = 1, **fields: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    run = prepared(variant, several(devices) if devices > 1 else None, **fields)
    data = run.settings.data
    images, side = data.batch_size, data.image_size
    batch = {"label": shape(images, dtype=np.int32)}
    if data.backend == "device":
        batch["resident_images"] = ResidentImages(
            shape(64, side * side * 3, dtype=np.uint8), (side, side, 3)
        )
        batch["index"] = shape(images, dtype=np.int32)
        batch["global_parameters"] = shape(2, images, len(PACKED))
    else:
        batch["global_views"] = shape(2, images, side, side, 3, dtype=np.uint8)
    placed = {
        name: jax.tree.map(functools.partial(on, sharding.batch_sharding(run.mesh, name)), entry)
        for name, entry in batch.items()
    }
    return run.step, (run.abstract_state, placed)


def several_steps(devices: int = 1) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Three steps of one dispatch, the data on the device."""
    fields = {"data.backend": "device", "evaluation.online_probe": True}
    run = prepared("hjepa", several(devices) if devices > 1 else None, **fields)
    _, (state, batch) = step("hjepa", devices, **fields)
    batches = {
        name: entry
        if name in sharding.WHOLE
        else jax.ShapeDtypeStruct(
            (3, *entry.shape),
            entry.dtype,
            sharding=sharding.batch_sharding(run.mesh, name, stacked=True),
        )
        for name, entry in batch.items()
    }
    steps = functools.partial(train_steps, run.setup, mesh=run.mesh)
    return jax.jit(steps, donate_argnums=0), (state, batches)


def encode() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    run = prepared("hjepa")
    state, side = run.abstract_state, run.settings.data.image_size
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    return run.encode, (variables, shape(8, side, side, 3, dtype=np.uint8))


def neighbors() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    search = jax.jit(functools.partial(knn._best_neighbors.__wrapped__, k=5))
    return search, (shape(8, 16), shape(3, 32, 16), shape(3, 32, dtype=np.int32))


def probe() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    train = jax.jit(functools.partial(train_probe, batch_size=8, weight_decay=1e-4))
    labels, orders = shape(32, dtype=np.int32), shape(2, 32, dtype=np.int32)
    return train, (init_probe(0, 16, 10), shape(32, 16), labels, orders, shape(3))


def regularizer() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    def value(z: jax.Array, slices: jax.Array) -> jax.Array:
        return sigreg(
            z,
            slices,
            t_max=3.0,
            n_points=9,
            weight_type="gaussian",
            statistics="per_view",
            means=characteristic_means,
        )

    return jax.jit(jax.value_and_grad(value)), (shape(2, 32, 16), shape(16, 24))


def projections() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Both forms: by a QR decomposition, and by a Cholesky decomposition."""

    def draw(bits: jax.Array) -> tuple[jax.Array, ...]:
        key = jax.random.wrap_key_data(bits)
        return tuple(orthonormal_projection(key, dim, 8) for dim in (8, 512))

    return jax.jit(draw), (shape(2, dtype=np.uint32),)


def augmentation() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    make = jax.jit(functools.partial(augment_on_device, size=8, kernel=3, threshold=128))
    return make, (shape(4, 12, 12, 3, dtype=np.uint8), shape(2, 4, len(PACKED)))


STEPS: dict[str, Callable[..., tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    **{
        f"step of {variant}": functools.partial(step, variant)
        for variant in ("hjepa", "mlp", "identity", "sigreg", "ham_diag", "ham_chain")
    },
    "step of ham_learnable, bfloat16": functools.partial(
        step, "ham_learnable", **{"model.compute_dtype": "bfloat16"}
    ),
    "step with the ImageNet stem": functools.partial(step, "sigreg", **{"resnet.stem": "imagenet"}),
    "step of bottlenecks": functools.partial(
        step, "hjepa", **{"resnet.block": "bottleneck", "resnet.zero_init": True}
    ),
    "step in parts, recomputed": functools.partial(
        step, "sigreg", **{"train.accumulation": 2, "resnet.remat": "blocks"}
    ),
    "step with augmentation and probe": functools.partial(
        step, "hjepa", **{"data.backend": "device", "evaluation.online_probe": True}
    ),
    "step of a transformer, bfloat16": functools.partial(
        step,
        "sigreg",
        **{
            "model.encoder": "vit",
            "model.compute_dtype": "bfloat16",
            "vit.width": 16,
            "vit.depth": 2,
            "vit.registers": 2,
            "vit.stochastic_depth": 0.5,
        },
    ),
    "step of a ConvNeXt, bfloat16": functools.partial(
        step,
        "sigreg",
        **{
            "model.encoder": "convnext",
            "model.compute_dtype": "bfloat16",
            "convnext.width": 8,
            "convnext.stage_blocks": (1, 1, 1, 1),
            "convnext.stochastic_depth": 0.5,
        },
    ),
    "three steps in one dispatch": several_steps,
}
FUNCTIONS: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    **STEPS,
    "frozen encoder": encode,
    "kNN": neighbors,
    "linear probe": probe,
    "SIGReg": regularizer,
    "random projections": projections,
    "augmentation": augmentation,
}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch) -> None:
    """The smallest operation is large enough for the forms that a CPU has."""
    monkeypatch.setattr(convolution, "_MIN_NATIVE", 1)
    monkeypatch.setattr(convolution, "_MIN_GROUPED", 1)
    for module in (batch_norm, characteristic_function, top_k):
        monkeypatch.setattr(module, "_MIN_VALUES", 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowers_for_accelerators(name) -> None:
    function, arguments = FUNCTIONS[name]()
    for platform in ("cuda", "tpu"):
        exported(function, arguments, platform)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_eight_devices_lowers_for_accelerators(name) -> None:
    """Its devices add up, and do nothing else together: no array of states is ever gathered.

    Small gradients are added as one array, each other gradient by itself, and each batch statistic
    once in either direction of a pass. The compiler merges most of these sums, see
    `check_collectives` in tests/support/layouts.py.
    """
    function, (state, batch) = STEPS[name](devices=8)
    statistics = len(jax.tree.leaves(state.batch_stats))
    gradients = 1 + sum(leaf.size >= 2**17 for leaf in jax.tree.leaves(state.params))
    passes = 2 if "in parts" in name else 1
    for platform in ("cuda", "tpu"):
        text = exported(function, (state, batch), platform)
        counts = collections.Counter(COLLECTIVE.findall(text))
        assert counts.keys() == {"all_reduce"}
        # The rest is of the loss and of the online probe.
        assert gradients < counts["all_reduce"] <= gradients + 2 * passes * statistics + 30


def exported(function: Callable[..., Any], arguments: tuple[Any, ...], platform: str) -> str:
    """Returns the program for a platform, which must be free of what no accelerator has."""
    text = jax.export.export(function, platforms=[platform])(*arguments).mlir_module()
    assert set(CALL.findall(text)) <= ALLOWED[platform]
    assert not FLOAT64.search(text)
    assert platform == "tpu" or "select_and_scatter" not in text
    assert not HOST.search(text)
    if platform == "cuda":
        # Else it would be TF32 on a GPU, as the encoder's convolutions are.
        products = [line for line in lines_of(text, "dot_general") if "xf32>, " in line]
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    return text


def lines_of(text: str, operation: str) -> list[str]:
    """Returns the lines of an operation."""
    return [line for line in text.splitlines() if f"stablehlo.{operation}" in line]


@pytest.mark.parametrize(("precision", "word"), [("tf32", "HIGH"), ("highest", "HIGHEST")])
def test_the_chosen_precision_reaches_the_products_of_the_encoder(precision, word) -> None:
    """Those of the projector too, in both directions, and no product of the loss."""
    projector = {"projector": "mlp", "projector_hidden": 8, "projector_dim": 16}
    fields = {f"model.{name}": value for name, value in projector.items()}
    function, arguments = step("sigreg", **fields, **{"runtime.matmul_precision": precision})
    text = jax.export.export(function, platforms=["cuda"])(*arguments).mlir_module()
    convolutions, products = (lines_of(text, name) for name in ("convolution", "dot_general"))
    assert len(convolutions) == 20
    assert all(line.count(f"<precision {word}>") == 2 for line in convolutions)
    stated = collections.Counter(re.findall(r"precision = \[(\w+), \w+\]", "\n".join(products)))
    # SIGReg has two products; two layers have one forward and two backward each.
    assert stated == collections.Counter({word: 6}) + collections.Counter(HIGHEST=2)
    assert len(products) == 8


def test_the_precision_of_a_run_is_that_of_its_frozen_encoder() -> None:
    run = prepared("hjepa", **{"runtime.matmul_precision": "tf32"})
    state, side = run.abstract_state, run.settings.data.image_size
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    images = shape(8, side, side, 3, dtype=np.uint8)
    text = jax.export.export(run.encode, platforms=["cuda"])(variables, images).mlir_module()
    convolutions = lines_of(text, "convolution")
    assert len(convolutions) == 7
    assert all(line.count("<precision HIGH>") == 2 for line in convolutions)


# Parts of the names of the kernels that a CPU calls.
CALLED = {
    "step in parts, recomputed": (
        "batch_norm",
        "batch_norm_gradient",
        "batch_norm_moments",
        "batch_norm_sums",
        "characteristic_function",
        "convolution",
        "convolution_input_gradient",
        "convolution_kernel_gradient",
    ),
    "frozen encoder": ("convolution",),
    "kNN": ("merge_top_k",),
    "SIGReg": ("characteristic_function",),
}


@pytest.mark.skipif(jax.device_count() > 1, reason="the kernels are for a single CPU device")
@pytest.mark.parametrize("name", CALLED)
def test_the_same_function_calls_kernels_on_the_cpu(name) -> None:
    """What the accelerators do not get was offered to them."""
    if not build.kernels():
        pytest.skip(build.kernels().description)
    function, arguments = FUNCTIONS[name]()
    text = function.lower(*arguments).as_text()
    called = {call for call in CALL.findall(text) if call.startswith("hjepa_")}
    assert called == {f"hjepa_{kernel}{build.kernels().suffix}" for kernel in CALLED[name]}
    assert not HOST.search(text)


def test_a_loop_over_parts_is_unrolled_on_the_cpu_alone() -> None:
    """So is the order of its parts kept by the means that each compiler respects."""

    def total(xs: jax.Array) -> jax.Array:
        return scan_or_unroll(lambda carry, x: (carry + x, x), xs[0], xs)[0]

    texts = {
        platform: jax.export.export(jax.jit(total), platforms=[platform])(shape(3, 5)).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert {name: "stablehlo.while" in text for name, text in texts.items()} == {
        "cpu": False,
        "cuda": True,
        "tpu": True,
    }
    waiting = jax.jit(with_dependency)
    texts = {
        platform: jax.export.export(waiting, platforms=[platform])(shape(3), shape(3)).mlir_module()
        for platform in texts
    }
    assert {name: "optimization_barrier" in text for name, text in texts.items()} == {
        "cpu": False,
        "cuda": True,
        "tpu": True,
    }
