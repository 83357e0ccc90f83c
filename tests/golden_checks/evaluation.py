"""Golden checks of evaluation: kNN, spectra, similarities and the linear probe (eval.npz)."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from golden_checks import common
from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation import geometry, knn, probe

_FILE = "eval.npz"


def _needs(prefix: str) -> dict[str, np.ndarray]:
    """Returns the group's arrays, or skips when this folder of vectors has none."""
    found = common.subtree(common.load(_FILE), prefix)
    if not found:
        pytest.skip(f"no {prefix} in {_FILE} of this folder of golden vectors")
    return found


def _params(group: dict[str, np.ndarray], prefix: str) -> probe.ProbeParams:
    """LayerNorm and Linear from a state dict, whose Linear weight is [C, D]."""
    return probe.ProbeParams(
        scale=group[f"{prefix}0.weight"],
        offset=group[f"{prefix}0.bias"],
        kernel=group[f"{prefix}1.weight"].T,
        bias=group[f"{prefix}1.bias"],
    )


@pytest.mark.parametrize("block", [7, 64, 8192])
def test_golden_evaluation_knn(block: int) -> None:
    group = _needs("knn/")
    ks = group["ks"].tolist()
    result = knn.knn_accuracy(
        group["train_feats"],
        group["train_labels"],
        group["test_feats"],
        group["test_labels"],
        ks=ks,
        num_classes=int(group["num_classes"]),
        block=block,
        reference=True,
    )
    assert result["k_values"] == ks
    common.assert_close(result["top1"], group["top1"], 1e-9, "top1")
    common.assert_close(result["top5"], group["top5_lowest_index_ties"], 1e-9, "top5")
    assert np.all(np.asarray(result["top5"]) >= group["top5_min"] - 1e-9)
    assert np.all(np.asarray(result["top5"]) <= group["top5_max"] + 1e-9)


def test_golden_evaluation_neighbors() -> None:
    group = _needs("knn/")
    k = group["neighbour_idx"].shape[1]
    with jax.enable_x64(True):
        indices, values = knn.nearest_neighbors(
            group["train_feats"].astype(np.float64), group["test_feats"].astype(np.float64), k
        )
    np.testing.assert_array_equal(indices, group["neighbour_idx"])
    common.assert_close(values, group["neighbour_sim"], 1e-9, "similarity")


@pytest.mark.parametrize("case", common.groups(common.load(_FILE), "cov/") or ["missing"])
def test_golden_evaluation_spectrum(case: str) -> None:
    group = _needs(f"cov/{case}/")
    used = group["feats"][group["subset_idx"]]
    found = geometry.covariance_spectrum(
        used, max_samples=int(group["max_samples"]), top=int(group["q"])
    )
    assert len(found.eigenvalues) == int(group["q_used"])
    assert found.num_samples == int(group["n_used"])
    exact = group["eigs_exact_all"]
    every = geometry.covariance_eigenvalues(used)
    common.assert_close(every, exact[: len(every)], 1e-9, "all eigenvalues")
    common.assert_close(found.eigenvalues, exact[: len(found.eigenvalues)], 1e-9, "top")
    for value, key in (
        (found.effective_rank, "eff_rank_topq_exact"),
        (found.participation_ratio, "participation_ratio_topq_exact"),
        (found.effective_rank_full, "eff_rank_full_exact"),
        (found.participation_ratio_full, "participation_ratio_full_exact"),
    ):
        common.assert_close(value, group[key], 1e-9, key)
    # The published values come from a randomized decomposition, 1 % off where it is truncated.
    common.assert_close(found.effective_rank, group["ref_eff_rank_topq"], 0.05, "published")


def test_golden_evaluation_cosine_and_norms() -> None:
    group, norms = _needs("cos/"), _needs("norm/")
    values = geometry.cosine_similarities(group["feats"], group["i1"], group["i2"])
    common.assert_close(values, group["values"], 1e-5, "cosine")
    lengths = np.linalg.norm(group["feats"], axis=1)
    common.assert_close(lengths, norms["values"], 1e-5, "norms")
    for name, value in geometry.summarize(values).items():
        common.assert_close(value, group[f"summary/{name}"], 1e-5, f"cosine {name}")
    for name, value in geometry.summarize(lengths).items():
        common.assert_close(value, norms[f"summary/{name}"], 1e-5, f"norm {name}")


def test_golden_evaluation_alignment() -> None:
    group = _needs("align/")
    found = geometry.alignment_uniformity(group["z1"], group["z2"], group["i1"], group["i2"])
    common.assert_close(found["alignment"], group["alignment"], 1e-5, "alignment")
    common.assert_close(found["uniformity"], group["uniformity"], 1e-5, "uniformity")


def test_golden_evaluation_probe_forward() -> None:
    group = _needs("probe_forward/")
    with jax.enable_x64(True):
        labels = jax.numpy.asarray(group["labels"])
        params = jax.tree.map(jax.numpy.asarray, _params(group, "param/"))

        def loss(params: probe.ProbeParams, x: jax.Array) -> jax.Array:
            return probe.cross_entropy(probe.probe_logits(params, x), labels).mean()

        x = jax.numpy.asarray(group["x"])
        logits = jax.jit(probe.probe_logits)(params, x)
        value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        value, (grads, grad_x) = value_and_grad(params, x)
        top1, top5 = probe.probe_accuracy(params, x, labels)
    common.assert_close(logits, group["logits"], 1e-9, "logits")
    common.assert_close(value, group["cross_entropy"], 1e-9, "cross-entropy")
    common.assert_close(grad_x, group["grad_x"], 1e-9, "grad x")
    for name, actual, expected in zip(grads._fields, grads, _params(group, "grad/"), strict=True):
        common.assert_close(actual, expected, 1e-9, f"grad {name}")
    common.assert_close(top1, group["top1"], 1e-9, "top1")
    common.assert_close(top5, group["top5"], 1e-9, "top5")


def test_golden_evaluation_probe_training() -> None:
    group = _needs("probe_train/")
    init = _params(group, "init/")
    settings = Evaluation(
        probe_epochs=int(group["epochs"]),
        probe_batch_size=int(group["batch_size"]),
        probe_lr=float(group["lr0"]),
        probe_weight_decay=float(group["weight_decay"]),
    )
    result = probe.linear_probe(
        (group["train_feats"], group["train_labels"]),
        (group["test_feats"], group["test_labels"]),
        len(group["init/1.bias"]),
        settings,
        params=jax.tree.map(jax.numpy.asarray, init),
        permutations=group["perms"],
    )
    final = _params(group, "final/")
    for name, actual, expected in zip(final._fields, result.params, final, strict=True):
        common.assert_close(actual, expected, 1e-5, name)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(init, final, strict=True))
    common.assert_close(result.top1, group["top1"], 1e-6, "top1")
    common.assert_close(result.top5, group["top5"], 1e-6, "top5")
