"""Value and gradient of ResNet-50 and ViT-S/8: ours, ours in XLA's operations, and PyTorch's.

    python benchmarks/encoders.py --batch 32 --size 64 --repeats 5

The loss is the mean product of the states with fixed numbers, in training mode, and the gradient is
that of all parameters. PyTorch runs torchvision's ResNet-50 and timm's ViT-S/8, where these are
installed, from our parameters: in its default layout, in channels-last, and compiled by
torch.compile in channels-last; the losses are compared. All take turns (each begins with untimed
runs), and medians are printed. "CPU s" is processor time, which other load hardly changes.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from turns import add_ceiling_arguments, take_turns_to_ceiling

from hjepa_jax.kernels.build import kernels
from hjepa_jax.models.resnet import ResNet, ResNetSection
from hjepa_jax.models.vit.encoder import ViT
from hjepa_jax.models.vit.section import ViTSection
from hjepa_jax.runtime import compilation_cache
from hjepa_jax.runtime.devices import without_cpu_forms

Side = Callable[[], float]
ENCODERS = ("resnet50", "vit_s8")


def our_encoder(name: str, args: argparse.Namespace) -> Any:
    """Returns the Flax module."""
    if name == "resnet50":
        section = ResNetSection(width=args.width or 64, depth=50, stem="imagenet", head="pooled")
        return ResNet(settings=section)
    section = ViTSection(width=args.width or 384, depth=args.depth, patch_size=8, head="class")
    return ViT(settings=section, image_size=args.size)


def our_side(encoder: Any, variables: Any, images: np.ndarray, target: np.ndarray) -> Side:
    """Returns our value and gradient, compiled in the current way of tracing."""

    def loss(params: Any, stats: Any, x: jax.Array) -> Any:
        given = {"params": params, **stats}
        states, updates = encoder.apply(given, x, train=True, mutable=["batch_stats"])
        return jnp.mean(states * target), updates

    params = variables["params"]
    stats = {name: value for name, value in variables.items() if name != "params"}
    arrays = params, stats, jnp.asarray(images)
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arrays).compile()

    def run() -> float:
        (value, _), gradient = jax.block_until_ready(compiled(*arrays))
        del gradient
        return float(value)

    return run


def vit_tensors(params: Any, depth: int) -> dict[str, np.ndarray]:
    """Returns our parameters in timm's names and layouts."""
    width = params["class_token"].shape[-1]
    patches = params["patches"]
    kernel = patches["kernel"].reshape(8, 8, 3, width).transpose(3, 2, 0, 1)
    position = [params["class_position"], params["position"].reshape(-1, width)]
    tensors = {
        "cls_token": params["class_token"][None],
        "pos_embed": np.concatenate(position)[None],
        "patch_embed.proj.weight": kernel,
        "patch_embed.proj.bias": patches["bias"],
        "norm.weight": params["norm"]["scale"],
        "norm.bias": params["norm"]["bias"],
    }
    for i in range(depth):
        block = params[f"block{i}"]
        for norm in ("norm1", "norm2"):
            tensors[f"blocks.{i}.{norm}.weight"] = block[norm]["scale"]
            tensors[f"blocks.{i}.{norm}.bias"] = block[norm]["bias"]
        layers = {
            "attn.qkv": block["attention"]["qkv"],
            "attn.proj": block["attention"]["projection"],
            "mlp.fc1": block["fc1"],
            "mlp.fc2": block["fc2"],
        }
        for theirs, ours in layers.items():
            tensors[f"blocks.{i}.{theirs}.weight"] = ours["kernel"].T
            tensors[f"blocks.{i}.{theirs}.bias"] = ours["bias"]
    return tensors


def resnet_tensors(encoder: ResNet, params: Any) -> dict[str, np.ndarray]:
    """Returns our parameters in torchvision's names and layouts."""
    tensors = {}
    for entry in encoder.foreign_names({}).entries:
        if entry.collection == "params":
            leaf = functools.reduce(lambda tree, name: tree[name], entry.path, params)
            tensors[entry.name] = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
    return tensors


def torch_sides(
    name: str,
    args: argparse.Namespace,
    tensors: Mapping[str, np.ndarray],
    images: np.ndarray,
    target: np.ndarray,
) -> dict[str, Side]:
    """Returns value and gradient in PyTorch's three ways; none where it is not installed."""
    library = "torchvision" if name == "resnet50" else "timm"
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec(library) is None:
        return {}
    torch = importlib.import_module("torch")

    def side(channels_last: bool, compiled: bool) -> Side:
        if name == "resnet50":
            models = importlib.import_module("torchvision.models")
            model = models.resnet50()
            model.fc = torch.nn.Identity()
        else:
            model = importlib.import_module("timm").create_model(
                "vit_small_patch8_224", img_size=args.size, num_classes=0, depth=args.depth
            )
        state = {key: torch.tensor(np.array(value)) for key, value in tensors.items()}
        model.load_state_dict({**model.state_dict(), **state})
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = model.train().to(memory_format=layout)
        x = torch.tensor(images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=layout)
        weight, parameters = torch.tensor(target), list(model.parameters())
        call = torch.compile(model) if compiled else model

        def run() -> float:
            loss = (call(x) * weight).mean()
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            return loss.item()

        return run

    sides = {"PyTorch": side(False, False), "PyTorch channels-last": side(True, False)}
    if not args.no_compile:
        sides["torch.compile channels-last"] = side(True, True)
    return sides


def measure(name: str, batch: int, args: argparse.Namespace) -> None:
    """Prints the table of one encoder and batch size."""
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, args.size, args.size, 3)).astype(np.float32)
    encoder = our_encoder(name, args)
    variables = jax.jit(functools.partial(encoder.init, train=False))(jax.random.key(0), images[:1])
    params = jax.device_get(variables["params"])
    states = jax.eval_shape(functools.partial(encoder.apply, train=False), variables, images)
    target = random.standard_normal(states.shape).astype(np.float32)
    sides = {"hjepa_jax": our_side(encoder, variables, images, target)}
    if not args.no_xla:
        with without_cpu_forms():
            sides["XLA's operations"] = our_side(encoder, variables, images, target)
    if args.width is None:
        resnet = name == "resnet50"
        tensors = resnet_tensors(encoder, params) if resnet else vit_tensors(params, args.depth)
        sides |= torch_sides(name, args, tensors, images, target)
    losses = {way: run() for way, run in sides.items()}
    print(f"warm; measuring {args.repeats} turns", file=sys.stderr, flush=True)
    spent, ceiling = take_turns_to_ceiling(sides, args, settle=1)
    print(f"\n{name}, {args.size} px, batch {batch}; medians of {args.repeats}; {ceiling}")
    columns = ("way", "seconds", "over hjepa_jax", "CPU s", "CPU over", "images/s", "loss")
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    ours = spent["hjepa_jax"]
    for way, (seconds, processor) in spent.items():
        print(
            f"| {way} | {seconds:.3f} | {seconds / ours.wall:.2f} | {processor:.3f} "
            f"| {processor / ours.processor:.2f} | {batch / seconds:.1f} | {losses[way]:.6f} |"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--width", type=int, help="channels of our encoders alone; None = theirs")
    parser.add_argument("--depth", type=int, default=12, help="blocks of the ViT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--no-xla", action="store_true", help="without XLA's operations")
    add_ceiling_arguments(parser)
    args = parser.parse_args()
    compilation_cache.enable()
    print(f"device: {jax.devices()[0].device_kind}; jax {jax.__version__}")
    print(f"native kernels: {kernels().description}", flush=True)
    for name in args.encoders:
        for batch in args.batch:
            measure(name, batch, args)


if __name__ == "__main__":
    main()
