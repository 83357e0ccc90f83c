"""Seconds and peak memory of exact kNN beside scikit-learn and, where installed, faiss and torch.

    python benchmarks/knn.py --train 50000 --test 10000 --dim 2048 --k 200

All sides find the k neighbors of largest cosine similarity of the same random features, in turn
(interleaved), and the medians and their ratios to ours are printed. Peak memory is measured in a
process of its own for each side, above what its imports and the features take. Our first call,
with compilation, is printed apart. On CPU all sides use all cores. "of ceiling" compares the
similarities' operations alone with a matrix product in the same turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from turns import Runner, add_ceiling_arguments, take_turns_to_ceiling

Array = npt.NDArray[np.float32]
Search = Callable[[Array, Array, int], npt.NDArray[Any]]


def features(count: int, dim: int, seed: int) -> Array:
    """Returns features with a decaying spectrum, as encoders give."""
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.25
    raw = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return (raw * scale).astype(np.float32)


def ours(block: int, test_block: int) -> Search:
    """Our search."""
    from hjepa_jax.evaluation import knn

    def search(train: Array, test: Array, k: int) -> npt.NDArray[Any]:
        return knn.nearest_neighbors(train, test, k, block=block, test_block=test_block)[0]

    return search


def scikit_learn() -> Search:
    """Brute force on unit vectors, where Euclidean order is cosine order (its fast path)."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    def search(train: Array, test: Array, k: int) -> npt.NDArray[Any]:
        index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(normalize(train))
        return index.kneighbors(normalize(test), return_distance=False)

    return search


def faiss_flat() -> Search:
    """The exact inner-product index on unit vectors."""
    faiss: Any = __import__("faiss")

    def search(train: Array, test: Array, k: int) -> npt.NDArray[Any]:
        train, test = train.copy(), test.copy()
        faiss.normalize_L2(train)
        faiss.normalize_L2(test)
        index = faiss.IndexFlatIP(train.shape[1])
        index.add(train)
        return index.search(test, k)[1]

    return search


def torch_topk() -> Search:
    """Products with the whole training set and topk, 1,024 test rows at a time."""
    torch: Any = __import__("torch")

    def search(train: Array, test: Array, k: int) -> npt.NDArray[Any]:
        unit = torch.nn.functional.normalize
        device = "cuda" if torch.cuda.is_available() else "cpu"
        a, b = (unit(torch.from_numpy(rows).to(device)) for rows in (train, test))
        return torch.cat([(rows @ a.T).topk(k).indices for rows in b.split(1024)]).cpu().numpy()

    return search


def sides(options: argparse.Namespace) -> dict[str, Callable[[], Search]]:
    """Returns how to make each search that can be made here."""
    made: dict[str, Callable[[], Search]] = {
        "hjepa_jax": lambda: ours(options.block, options.test_block),
        "scikit-learn": scikit_learn,
    }
    optional = {"faiss": faiss_flat, "torch": torch_topk}
    made |= {name: make for name, make in optional.items() if importlib.util.find_spec(name)}
    return {name: make for name, make in made.items() if name in (options.only or made)}


def resident_megabytes() -> float:
    """Returns the resident size of this process (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def added_megabytes(action: Callable[[], object]) -> float:
    """Runs `action` and returns by how much the resident size rose at most (sampled every 2 ms)."""
    before, peak, done = resident_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    done.set()
    watcher.join()
    return max(0.0, peak[0] - before)


def memory_of(name: str, options: argparse.Namespace) -> float:
    """Runs one side alone in a process of its own; returns what its search added, in MB."""
    sizes = [f"--{key}={getattr(options, key)}" for key in ("train", "test", "dim", "k")]
    sizes += [f"--block={options.block}", f"--test-block={options.test_block}"]
    command = [sys.executable, os.path.abspath(__file__), *sizes, "--only", name, "--memory"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure(options: argparse.Namespace) -> None:
    """Prints times, agreement and memory of every side."""
    train = features(options.train, options.dim, 0)
    test = features(options.test, options.dim, 1)
    searches = {name: make() for name, make in sides(options).items()}
    found = {}
    for name, search in searches.items():
        start = time.perf_counter()
        found[name] = search(train, test, options.k)
        print(f"{name}: first call {time.perf_counter() - start:.2f} s", flush=True)
    runners: dict[str, Runner] = {
        name: lambda search=search: search(train, test, options.k)
        for name, search in searches.items()
    }
    spent, ceiling = take_turns_to_ceiling(runners, options)
    base, first = next(iter(spent.values())).wall, next(iter(found.values()))
    flops = 2 * options.train * options.test * options.dim
    print(f"medians of {options.repeats}; {ceiling}")
    print(f"{'':14} {'seconds':>9} {'/ ours':>7} {'of ceiling':>11} {'same':>8} {'peak MB':>8}")
    for name, (seconds, _) in spent.items():
        same = np.mean(found[name] == first)
        memory = f"{memory_of(name, options):8.0f}" if options.peak else ""
        share = flops / seconds / ceiling.flops
        print(
            f"{name:14} {seconds:9.3f} {seconds / base:7.2f} {share:11.0%} {same:8.2%} {memory}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("train", 50_000), ("test", 10_000), ("dim", 2048), ("k", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--block", type=int, default=8192, help="our training rows at a time")
    parser.add_argument("--test-block", type=int, default=1024, help="our test rows at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of the sides to run")
    parser.add_argument(
        "--no-peak", dest="peak", action="store_false", help="skip peak memory (needs Linux)"
    )
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    add_ceiling_arguments(parser)
    options = parser.parse_args()
    if not options.memory:
        measure(options)
        return
    (search,) = (make() for make in sides(options).values())
    train = features(options.train, options.dim, 0)
    test = features(options.test, options.dim, 1)
    # A small search first: libraries load and threads start before the measurement.
    search(train[: options.k], test[:1], min(options.k, 2))
    print(added_megabytes(lambda: search(train, test, options.k)))


if __name__ == "__main__":
    main()
