"""The mesh, the placement of batches, and the check of steps on several devices."""

import forked
import numpy as np
from jax.sharding import PartitionSpec

from hjepa_jax.runtime import sharding


def test_put_batch_shards_images_not_views() -> None:
    mesh = sharding.data_mesh()
    batch = {
        "global_views": np.zeros((2, 8, 4, 4, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    placed = sharding.put_batch(mesh, batch)
    assert placed["global_views"].sharding.spec == PartitionSpec(None, sharding.DATA_AXIS)
    assert placed["label"].sharding.spec == PartitionSpec(sharding.DATA_AXIS)
    np.testing.assert_array_equal(placed["label"], batch["label"])


def test_uneven_batch_is_one_clear_sentence() -> None:
    class Eight:
        size = 8

    sentence = sharding.divisibility_error(12, Eight(), "config.data.batch_size")
    assert sentence is not None
    for word in ("config.data.batch_size is 12", "8 devices", "8 or 16"):
        assert word in sentence
    assert sharding.divisibility_error(16, Eight(), "x") is None
    sentence = sharding.divisibility_error(16, Eight(), "x", accumulation=4)
    assert sentence is not None
    assert "8 devices times config.train.accumulation=4: set it to a multiple of 32" in sentence


def test_the_check_of_layouts_finds_that_they_agree() -> None:
    """The user's own check; test_shares.py has every kind of run."""
    config = "--config=configs/cifar100.py:sigreg-smoke"
    done = forked.run("scripts/layout_check.py", config, "--devices=2", "--tolerance=1e-9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 layouts agree" in done.stdout
