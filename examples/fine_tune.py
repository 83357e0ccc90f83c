"""Fine-tunes the encoder of a run on ten labels of each class, with optax, and saves it.

python examples/fine_tune.py runs/quickstart fine_tuned/

The labels are those of the run's own data. The same encoder from random initialization shows what
the training without labels was worth.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hjepa_jax
from hjepa_jax.data.sources.base import ImageSource, decode
from hjepa_jax.data.sources.open import open_split

LABELS = 10  # of each class


def fine_tune(
    encoder: hjepa_jax.TrainedEncoder, images: np.ndarray, labels: np.ndarray, steps: int
) -> tuple[hjepa_jax.TrainedEncoder, np.ndarray]:
    """Trains the encoder with a linear head on images uint8 [N, S, S, 3], all in each step.

    Returns:
      The fine-tuned encoder, and the head [D, C].
    """
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps))
    head = jnp.zeros((encoder.dim, int(labels.max()) + 1))
    params = {"encoder": encoder.variables["params"], "head": head}

    def loss(params, statistics, key):
        # Stochastic depth draws for each image.
        drawn = {"keys": jax.random.split(key, len(images))} if encoder.module.takes_keys else {}
        variables = {"params": params["encoder"], "batch_stats": statistics}
        states, updates = encoder.module.apply(
            variables, encoder.normalize(images), train=True, mutable=["batch_stats"], **drawn
        )
        logits = states @ params["head"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates.get("batch_stats", {})

    @jax.jit
    def step(params, statistics, memory, key):
        gradient, statistics = jax.grad(loss, has_aux=True)(params, statistics, key)
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), statistics, memory

    statistics, memory = encoder.variables["batch_stats"], optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), steps):
        params, statistics, memory = step(params, statistics, memory, key)
    tuned = encoder.replace({"params": params["encoder"], "batch_stats": statistics})
    return tuned, np.asarray(params["head"])


def accuracy(encoder, head, images, labels) -> float:
    return float(np.mean((encoder.encode(images) @ head).argmax(axis=1) == labels))


def pixels_of(source: ImageSource, indices) -> list[np.ndarray]:
    return [decode(source.record(int(index))) for index in indices]


def main(folder: str, out: str, steps: int = 60) -> None:
    run = hjepa_jax.load(folder)
    train, test = open_split(run.settings, "train"), open_split(run.settings, "test")
    classes = range(len(train.class_names))
    chosen = np.concatenate([np.flatnonzero(train.labels() == c)[:LABELS] for c in classes])
    images, labels = run.encoder.crop(pixels_of(train, chosen)), train.labels()[chosen]
    test_images, test_labels = pixels_of(test, range(len(test))), test.labels()
    fresh = run.encoder.replace(run.encoder.module.init(jax.random.key(0), images[:1], train=False))
    for name, encoder in (("random initialization", fresh), ("the trained encoder", run.encoder)):
        tuned, head = fine_tune(encoder, images, labels, steps)
        percent = 100 * accuracy(tuned, head, test_images, test_labels)
        print(f"{len(labels)} labels, from {name}: {percent:.1f} % of {len(test_labels)} images")
    print(f"fine-tuned encoder: {tuned.save_pretrained(out)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except hjepa_jax.UserError as error:
        sys.exit(str(error))
