"""Ways to compute the encoder's 3x3 convolutions and normalization, beside XLA's own.

    python benchmarks/convolutions.py --images 64 --shapes 32x64 16x128 8x256 --repeats 5

For each SIDExCHANNELS, the forward pass, the input gradient and the kernel gradient of a stride-1
convolution are timed alone: XLA's convolution, the native kernels (what hjepa_jax uses on a lone
CPU device, where there is a C++ compiler), the kernel gradient in scanned groups of images (where
there is none), all passes in unrolled groups, Winograd's F(2x2, 3x3) in XLA, im2col, and channels
padded to a multiple. All take turns and medians are printed, over XLA's time and as a share of the
ceiling of a matrix product measured in the same turns: with fewer multiplications the share can
pass 100 %. "error" is the largest difference from XLA's result over its largest entry. Batch
normalization with ReLU is timed as flax differentiates it, with one hand-written backward pass, and
in the native kernels.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from turns import ONE_RUN, Spent, add_ceiling_arguments, ceiling_runners, pop_ceiling, take_turns

from hjepa_jax.kernels.batch_norm import batch_norm_native
from hjepa_jax.kernels.build import kernels
from hjepa_jax.kernels.convolution import (
    conv2d_grouped_gradient,
    conv2d_native,
    conv2d_plain,
    unfold,
)

Convolution = Callable[[jax.Array, jax.Array], jax.Array]
# Winograd's F(2, 3): output transform, kernel transform and data transform (Lavin and Gray, 2016).
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_DATA = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution by 16 products of transformed 4x4 tiles: 2.25 times fewer multiplications.

    Its gradients are the transposed transforms, so that they multiply as little.
    """
    n, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    padding = ((0, 0), (1, 1 + 2 * rows - height), (1, 1 + 2 * columns - width), (0, 0))
    padded = jnp.pad(x, padding)
    tiles = jnp.stack(
        [
            padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2]
            for i in range(4)
            for j in range(4)
        ]
    ).reshape(4, 4, n * rows * columns, channels)
    data, weights, output = (jnp.asarray(m, x.dtype) for m in (_DATA, _KERNEL, _OUTPUT))
    transformed = jnp.einsum("ai,bj,ijtc->abtc", data, data, tiles)
    kernels = jnp.einsum("ai,bj,ijcf->abcf", weights, weights, kernel)
    products = jnp.einsum("abtc,abcf->abtf", transformed, kernels)
    tiles_out = jnp.einsum("ia,jb,abtf->ijtf", output, output, products)
    tiles_out = tiles_out.reshape(2, 2, n, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return tiles_out.reshape(n, 2 * rows, 2 * columns, -1)[:, :height, :width]


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution by one product of unfolded patches."""
    product = unfold(x, (3, 3), 1, 1) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(*x.shape[:3], -1)


def padded_channels(x: jax.Array, kernel: jax.Array, multiple: int) -> jax.Array:
    """XLA's convolution on channels padded with zeros to a multiple."""
    extra_in, extra_out = (-size % multiple for size in kernel.shape[2:])
    wide = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra_in)))
    kernels = jnp.pad(kernel, ((0, 0), (0, 0), (0, extra_in), (0, extra_out)))
    return conv2d_plain(wide, kernels, 1, 1)[..., : kernel.shape[-1]]


def unrolled(x: jax.Array, kernel: jax.Array, group: int) -> jax.Array:
    """XLA's convolution of some images at a time; so are its gradients."""
    groups = [x[i : i + group] for i in range(0, len(x), group)]
    return jnp.concatenate([conv2d_plain(part, kernel, 1, 1) for part in groups])


def convolutions(multiple: int, group: int) -> dict[str, Any]:
    """Returns the ways by name, XLA's own first; each is a `Convolution`."""
    native = {"native": lambda x, k: conv2d_native(x, k, 1, 1)} if kernels() else {}
    return {
        "XLA": lambda x, k: conv2d_plain(x, k, 1, 1),
        **native,
        f"unrolled groups of {group}": functools.partial(unrolled, group=group),
        f"scanned groups of {group}": lambda x, k: conv2d_grouped_gradient(x, k, 1, 1, group),
        "Winograd in XLA": winograd,
        "im2col": im2col,
        f"padded to {multiple}": functools.partial(padded_channels, multiple=multiple),
    }


def passes(convolve: Convolution) -> dict[str, Any]:
    """Returns the jitted forward, input gradient and kernel gradient of (x, kernel, cotangent)."""
    return {
        "forward": jax.jit(lambda x, k, bar: convolve(x, k)),
        "input gradient": jax.jit(lambda x, k, bar: jax.vjp(lambda x: convolve(x, k), x)[1](bar)),
        "kernel gradient": jax.jit(lambda x, k, bar: jax.vjp(lambda k: convolve(x, k), k)[1](bar)),
    }


def batch_norm_relu(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Batch normalization of x [N, H, W, C] over its first axes, then ReLU."""
    mean = jnp.mean(x, (0, 1, 2))
    variance = jnp.mean(jnp.square(x), (0, 1, 2)) - jnp.square(mean)
    return jax.nn.relu((x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias)


@jax.custom_vjp
def fused_batch_norm_relu(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`batch_norm_relu` whose gradient reads x and the cotangent twice and stores no more."""
    return batch_norm_relu(x, scale, bias)


def _fused_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    mean = jnp.mean(x, (0, 1, 2))
    variance = jnp.mean(jnp.square(x), (0, 1, 2)) - jnp.square(mean)
    inverse = jax.lax.rsqrt(variance + 1e-5)
    out = jax.nn.relu((x - mean) * (inverse * scale) + bias)
    return out, (x, mean, inverse, scale, bias)


def _fused_backward(residuals: Any, bar: jax.Array) -> Any:
    x, mean, inverse, scale, bias = residuals
    count = x.size // x.shape[-1]
    normalized = (x - mean) * inverse
    bar = jnp.where(normalized * scale + bias > 0, bar, 0)
    bar_bias = jnp.sum(bar, (0, 1, 2))
    bar_scale = jnp.sum(bar * normalized, (0, 1, 2))
    bar_x = (bar - (bar_bias + normalized * bar_scale) / count) * (inverse * scale)
    return bar_x, bar_scale, bar_bias


fused_batch_norm_relu.defvjp(_fused_forward, _fused_backward)


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Spent]:
    """Returns what each function spends, all taking turns; once before, for compilation."""
    runners: dict[str, Any] = {
        name: lambda f=function: jax.block_until_ready(f()) for name, function in functions.items()
    }
    for runner in runners.values():
        runner()
    return take_turns(runners, repeats, settle=ONE_RUN)


def relative_error(found: Any, expected: Any) -> float:
    """Returns the largest difference of two trees over the largest entry of the second."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected)))
    largest = max(float(jnp.max(jnp.abs(b))) for _, b in pairs)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) / largest


def measure_shape(side: int, channels: int, args: argparse.Namespace) -> None:
    """Prints a line for each pass and each way at one shape."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (args.images, side, side, channels)
    x, bar = (jax.random.normal(key, shape) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, channels, channels)) / (3 * channels**0.5)
    flops = 2 * x.size * 9 * channels
    ways = {name: passes(way) for name, way in convolutions(args.multiple, args.group).items()}
    for which in ("forward", "input gradient", "kernel gradient"):
        functions = {
            name: functools.partial(way[which], x, kernel, bar)
            for name, way in ways.items()
            # Its other passes are XLA's own.
            if which == "kernel gradient" or not name.startswith("scanned")
        }
        spent = interleaved({**functions, **ceiling_runners(args)}, args.repeats)
        ceiling = pop_ceiling(spent, args).flops
        expected = functions["XLA"]()
        for name, (seconds, _) in spent.items():
            error = relative_error(functions[name](), expected)
            print(
                f"| {args.images} x {side} x {channels} | {which} | {name} | {1e3 * seconds:.1f} "
                f"| {spent['XLA'].wall / seconds:.2f} | {flops / seconds / ceiling:.0%} "
                f"| {error:.0e} |",
                flush=True,
            )


def measure_normalization(side: int, channels: int, args: argparse.Namespace) -> None:
    """Prints value and gradient of normalization with ReLU in both forms."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, bar = (jax.random.normal(key, (args.images, side, side, channels)) for key in keys)
    scale, bias = jnp.ones(channels), 0.1 * jnp.ones(channels)
    forms: dict[str, Callable[..., jax.Array]] = {
        "plain": batch_norm_relu,
        "one backward pass": fused_batch_norm_relu,
    }
    if kernels():
        forms["native"] = lambda x, s, b: batch_norm_native(x, s, b, None, True, 1e-5)[0]

    def gradient(form: Any) -> Any:
        return jax.jit(lambda x, s, b: jax.value_and_grad(_loss(form, bar), (0, 1, 2))(x, s, b))

    compiled = {name: gradient(form) for name, form in forms.items()}
    functions = {name: functools.partial(run, x, scale, bias) for name, run in compiled.items()}
    spent = interleaved(functions, args.repeats)
    expected = functions["plain"]()
    for name, (seconds, _) in spent.items():
        error = relative_error(functions[name](), expected)
        print(
            f"| {args.images} x {side} x {channels} | normalization and ReLU, value and gradient "
            f"| {name} | {1e3 * seconds:.1f} | {spent['plain'].wall / seconds:.2f} "
            f"| | {error:.0e} |",
            flush=True,
        )


def _loss(form: Any, bar: jax.Array) -> Callable[..., jax.Array]:
    return lambda x, scale, bias: jnp.sum(form(x, scale, bias) * bar)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--shapes", nargs="+", default=["32x64", "16x128", "8x256"])
    parser.add_argument("--group", type=int, default=8, help="images of a group")
    parser.add_argument("--multiple", type=int, default=128, help="channels are padded to it")
    add_ceiling_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.images % args.group:
        parser.error(f"--group={args.group} must divide --images={args.images}.")
    print(f"device: {jax.devices()[0].device_kind}; jax {jax.__version__}; float32")
    print(f"native kernels: {kernels().description}")
    columns = ("images x side x channels", "pass", "way", "ms", "gain", "of ceiling", "error")
    print(f"| {' | '.join(columns)} |\n|---|---|---|---:|---:|---:|---:|")
    for text in args.shapes:
        side, channels = (int(part) for part in text.split("x"))
        measure_shape(side, channels, args)
        measure_normalization(side, channels, args)


if __name__ == "__main__":
    main()
