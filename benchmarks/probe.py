"""Seconds and accuracy of the linear probe and of logistic regression beside others.

    python benchmarks/probe.py --train 50000 --test 10000 --dim 1024 --classes 100 --epochs 50

The features are random class means with noise, so that accuracies mean something. PyTorch, where
installed, trains the same probe (LayerNorm and Linear, AdamW, cosine) from the same parameters over
the same batches. Logistic regression on standardized features is another problem with the same
purpose: ours and scikit-learn's minimize the same loss by L-BFGS, scikit-learn's to its default
tolerance and to one that reaches our loss, and ours is measured with a sweep of penalties too. With
--decay the features are correlated, as encoders' are. All take turns, and medians are printed over
the first; first calls, with compilation, are not in them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from turns import Runner, add_ceiling_arguments, take_turns_to_ceiling

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation.probe import init_probe, linear_probe, shuffles
from hjepa_jax.evaluation.probes.logistic import logistic_probe

Split = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]
Side = Callable[[Split, Split], float]


def features(count: int, means: npt.NDArray[np.float32], noise: float, seed: int) -> Split:
    """Returns rows around the mean of their class, and the classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(means), count, dtype=np.int32)
    rows = means[labels] + noise * random.standard_normal((count, means.shape[1]), np.float32)
    return rows.astype(np.float32), labels


def spectrum(dim: int, decay: float) -> npt.NDArray[np.float32]:
    """Returns a matrix that gives isotropic rows the deviations rank^-decay, on random axes."""
    if not decay:
        return np.eye(dim, dtype=np.float32)
    axes = np.linalg.qr(np.random.default_rng(3).standard_normal((dim, dim)))[0]
    return (np.arange(1, dim + 1)[:, None] ** -decay * axes).astype(np.float32)


def ours(train: Split, test: Split, *, classes: int, settings: Evaluation) -> float:
    """Returns our top-1 accuracy."""
    return linear_probe(train, test, classes, settings).top1


def torch_probe(train: Split, test: Split, *, classes: int, settings: Evaluation) -> float:
    """Returns the top-1 accuracy of the same probe in PyTorch."""
    torch: Any = __import__("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, test_x = (torch.from_numpy(split[0]).to(device) for split in (train, test))
    y, test_y = (torch.from_numpy(split[1]).long().to(device) for split in (train, test))
    start = init_probe(settings.seed, x.shape[1], classes)
    linear = torch.nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.array(start.kernel)).T)
        linear.bias.copy_(torch.from_numpy(np.array(start.bias)))
    model = torch.nn.Sequential(torch.nn.LayerNorm(x.shape[1]), linear).to(device)
    lr = settings.probe_lr
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=settings.probe_weight_decay)
    steps = -(-len(y) // settings.probe_batch_size) * settings.probe_epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    orders = torch.from_numpy(
        shuffles(np.arange(len(y)), settings.probe_epochs, settings.seed)
    ).long()
    for order in orders:
        for rows in order.split(settings.probe_batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_y).float().mean())


def our_logistic(train: Split, test: Split, *, classes: int, settings: Evaluation) -> float:
    """Returns the top-1 accuracy of our logistic regression."""
    return logistic_probe(train, test, classes, settings).top1


def logistic_regression(train: Split, test: Split, *, l2: float, tolerance: float) -> float:
    """Returns the top-1 accuracy of scikit-learn's logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    c = 1 / (l2 * len(train[1]))
    regression = LogisticRegression(C=c, tol=tolerance, max_iter=1000)
    model = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model.fit(*train)
    return float(model.score(*test))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sizes = {"train": 50_000, "test": 10_000, "dim": 1024, "classes": 100, "epochs": 50}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--noise", type=float, default=6.0, help="of a coordinate; means have 1")
    parser.add_argument("--l2", type=float, default=1e-3, help="penalty of logistic regression")
    parser.add_argument("--decay", type=float, default=0.0, help="exponent of the spectrum")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of the sides to run")
    add_ceiling_arguments(parser)
    args = parser.parse_args()

    means = np.random.default_rng(0).standard_normal((args.classes, args.dim)).astype(np.float32)
    mix = spectrum(args.dim, args.decay)
    train, test = (
        (rows @ mix, labels)
        for rows, labels in (
            features(n, means, args.noise, i) for i, n in ((1, args.train), (2, args.test))
        )
    )
    settings = Evaluation(probe_epochs=args.epochs, probe_batch_size=args.batch)
    common = {"classes": args.classes, "settings": settings}
    made: dict[str, Side] = {"hjepa_jax": functools.partial(ours, **common)}
    if importlib.util.find_spec("torch"):
        made["PyTorch"] = functools.partial(torch_probe, **common)
    for name, penalties in (("", (args.l2,)), (", 6 penalties", settings.logistic_l2)):
        chosen = dataclasses.replace(settings, logistic_l2=penalties)
        made[f"hjepa_jax, logistic{name}"] = functools.partial(
            our_logistic, classes=args.classes, settings=chosen
        )
    for name, tolerance in (("", 1e-4), (", tol 1e-6", 1e-6)):
        made[f"scikit-learn, logistic{name}"] = functools.partial(
            logistic_regression, l2=args.l2, tolerance=tolerance
        )
    made = {name: side for name, side in made.items() if name in (args.only or made)}
    start = time.perf_counter()
    next(iter(made.values()))(train, test)
    print(f"{next(iter(made))}: first call {time.perf_counter() - start:.1f} s", flush=True)

    few: Split = train[0][: args.batch], train[1][: args.batch]
    for name, side in list(made.items())[1:]:
        # Imports and compilations are in nobody's time.
        side(*((train, test) if name.startswith("hjepa_jax") else (few, few)))
    top1: dict[str, float] = {}

    def run(name: str) -> None:
        top1[name] = made[name](train, test)

    runners: dict[str, Runner] = {name: functools.partial(run, name) for name in made}
    spent, ceiling = take_turns_to_ceiling(runners, args)
    base = next(iter(spent.values())).wall
    # Logits and the gradient of their weights. The features pass through memory as well.
    flops = 4 * args.epochs * args.train * args.dim * args.classes
    print(f"medians of {args.repeats}; {ceiling}")
    print("| probe | seconds | over the first | of ceiling | top-1 % |\n|---|---:|---:|---:|---:|")
    for name, (seconds, _) in spent.items():
        same = name in ("hjepa_jax", "PyTorch")
        share = f"{flops / seconds / ceiling.flops:.0%}" if same else ""
        print(
            f"| {name} | {seconds:.2f} | {seconds / base:.2f} | {share} | {100 * top1[name]:.2f} |"
        )


if __name__ == "__main__":
    main()
