"""The train step on shares of a batch equals that of the whole batch, for every kind of run."""

import forked
import pytest

CIFAR = "configs/cifar100.py"
# Numbers of devices, and a configuration. What concerns different parts is tried together.
CASES = {
    "hjepa": ("1,2,8", f"{CIFAR}:smoke"),
    "sigreg": ("1,2,8", f"{CIFAR}:sigreg-smoke"),
    "hjepa with SIGReg": ("1,2,8", f"{CIFAR}:smoke", "--config.loss.regularizer=sigreg"),
    "vicreg, three views": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke", "--config.method=vicreg"),
        *("--config.data.num_local_views=1", "--config.data.local_size=16"),
    ),
    "barlow": ("1,2,8", f"{CIFAR}:sigreg-smoke", "--config.method=barlow"),
    "visreg": ("1,2,8", f"{CIFAR}:sigreg-smoke", "--config.method=visreg"),
    "hjepa with visreg": ("2", f"{CIFAR}:smoke", "--config.loss.regularizer=visreg"),
    "watson of a subsample": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke", "--config.sigreg.test=watson"),
        "--config.sigreg.subsample=7",
    ),
    "flattened Jarque-Bera": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke", "--config.sigreg.test=extended_jarque_bera"),
        "--config.sigreg.statistics=flattened",
    ),
    "bhep": ("1,2,8", f"{CIFAR}:sigreg-smoke", "--config.sigreg.test=bhep"),
    "learned spectrum": ("2,8", f"{CIFAR}:ham_learnable-smoke"),
    "chain": ("2", f"{CIFAR}:ham_chain-smoke"),
    "mlp": ("2", f"{CIFAR}:mlp-smoke"),
    # It clips all but the predictor.
    "imagenet, split moments, reversible flow": (
        *("2", "configs/imagenet100.py:parity-smoke"),
        "--config.train.shard_optimizer=True",
        "--config.dynamics.reversible=True",
    ),
    "bottlenecks, pooled": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.resnet.block=bottleneck",
        "--config.resnet.head=pooled",
        "--config.resnet.token_layer=layer3",
        "--config.resnet.token_dim=32",
        "--config.model.split_qp=True",
    ),
    "two-sided subsample": (
        *("4", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.t_min=-4",
        "--config.sigreg.num_t=8",
        "--config.sigreg.subsample=7",
    ),
    "flattened subsample, remat, projector": (
        *("4", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.subsample=9",
        "--config.sigreg.statistics=flattened",
        "--config.sigreg.clip_value=0.5",
        "--config.resnet.remat=blocks",
        "--config.model.projector=mlp",
        "--config.model.projector_dim=16",
    ),
    "one projector for q and one for p, budget of variance, split moments": (
        *("1,2,8", f"{CIFAR}:smoke"),
        "--config.train.shard_optimizer=True",
        "--config.model.projector=halves",
        "--config.model.projector_widths=(24,20,16)",
        "--config.loss.budget_of=variance",
        "--config.loss.q_target=0.5",
    ),
    "LARS, split moments, masks, projector": (
        *("2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.train.optimizer=lars",
        "--config.train.lr=0.3",
        "--config.train.decay_exclude=('biases','norms')",
        "--config.train.shard_optimizer=True",
        "--config.model.projector=mlp",
        "--config.model.projector_widths=(24,20,16)",
    ),
    "midpoint, energy": (
        *("2", f"{CIFAR}:smoke"),
        "--config.dynamics.integrator=implicit_midpoint",
        "--config.dynamics.hamiltonian=learnable",
        "--config.loss.energy_weight=0.3",
        "--config.loss.match=qp",
    ),
    "identity, accumulation, local views": (
        *("2", f"{CIFAR}:identity-smoke"),
        "--config.train.accumulation=2",
        "--config.data.num_local_views=2",
        "--config.data.local_size=16",
        "--config.loss.pairing=local_to_global",
    ),
    "split moments, log-det settings of each half, reversible flow": (
        *("8", f"{CIFAR}:smoke"),
        "--config.train.shard_optimizer=True",
        "--config.loss.p_logdet_dim=5",
        "--config.loss.p_logdet_eps=0.001",
        "--config.loss.p_logdet_refresh_interval=3",
        "--config.dynamics.reversible=True",
        "--config.dynamics.steps=5",
        "--config.dynamics.damping=0.3",
    ),
    "local batch norm, online probe": (
        *("4", f"{CIFAR}:smoke"),
        "--config.model.batch_norm=local",
        "--config.evaluation.online_probe=True",
        # Normalized states meet the target 1 to 1e-4, whose square keeps half of the digits alone.
        "--config.loss.q_target=0.5",
        "--config.loss.p_target=0.5",
    ),
    "transformer, stochastic depth, accumulation, local views": (
        *("2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.model.encoder=vit",
        "--config.vit.width=16",
        "--config.vit.depth=2",
        "--config.vit.heads=2",
        "--config.vit.head=mean",
        "--config.vit.stochastic_depth=0.5",
        "--config.vit.remat=blocks",
        "--config.train.accumulation=2",
        "--config.data.num_local_views=2",
        "--config.data.local_size=8",
    ),
    "ConvNeXt, stochastic depth": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.model.encoder=convnext",
        "--config.convnext.width=8",
        "--config.convnext.patch_size=2",
        "--config.convnext.stage_blocks=(1,1,1,1)",
        "--config.convnext.head=mean",
        "--config.convnext.stochastic_depth=0.5",
    ),
    "sorted normal order statistics": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.test=shapiro_wilk",
    ),
    "tails of the distribution function, projector": (
        *("1,2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.test=anderson_darling",
        "--config.model.projector=mlp",
        "--config.model.projector_widths=(24,8)",
    ),
    "standardized whole states, projector": (
        *("2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.test=henze_zirkler",
        "--config.model.projector=mlp",
        "--config.model.projector_widths=(24,8)",
    ),
    "skewness and kurtosis, projector": (
        *("2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.test=jarque_bera",
        "--config.model.projector=mlp",
        "--config.model.projector_widths=(24,8)",
    ),
    "distribution function, projector": (
        *("2,8", f"{CIFAR}:sigreg-smoke"),
        "--config.sigreg.test=cramer_von_mises",
        "--config.model.projector=mlp",
        "--config.model.projector_widths=(24,8)",
    ),
    "online probe before a projector": (
        *("4", f"{CIFAR}:sigreg-smoke", "--config.evaluation.online_probe=True"),
        "--config.model.projector=mlp",
        "--config.model.projector_widths=(24,16)",
        "--config.train.accumulation=2",
    ),
    "online probe": ("4", f"{CIFAR}:sigreg-smoke", "--config.evaluation.online_probe=True"),
}


def run(program: str, *arguments: str) -> str:
    """Runs a program in a process of its own, since it forces devices, and returns its output."""
    done = forked.run(f"tests/support/{program}", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_shares_is_that_of_the_whole_batch(name: str) -> None:
    assert "layouts agree" in run("layouts.py", *CASES[name])


def test_bfloat16_gradients_are_added_in_float32() -> None:
    assert "float32 sums" in run("bfloat16_sums.py")
