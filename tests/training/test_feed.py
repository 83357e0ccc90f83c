"""The backend is chosen once in a run, and images that stay on the device train bit-equal."""

import logging

import jax
import numpy as np
import pytest
from image_files import OneByOne

import hjepa_jax.training.feed
import hjepa_jax.training.prepare
from hjepa_jax.config.checks import typed
from hjepa_jax.data.batches import batch_bytes
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.recipes import cifar100, quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.kill_test import differing_arrays, final_state
from hjepa_jax.train import train
from hjepa_jax.training.feed import resident_images, with_backend
from hjepa_jax.training.saved_run import saved_config


def smoke(**fields):
    config = quickstart.get_config("smoke")
    config.update_from_flattened_dict(fields)
    return config


def test_auto_is_the_host_on_a_cpu_and_the_device_on_an_accelerator(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    settings = typed(smoke())
    source = open_split(settings, "train")
    assert settings.data.backend == "auto"
    assert with_backend(settings, "auto", source).data.backend == "host"
    assert with_backend(settings, "device", source).data.backend == "device"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert with_backend(settings, "auto", source).data.backend == "device"
    assert with_backend(settings, "host", source).data.backend == "host"
    small = settings.replace({"data.resident_mb": 0})
    assert with_backend(small, "auto", source).data.backend == "device"
    with_backend(settings, "auto", OneByOne(source))
    stay = "where all images stay (0.2 MiB)"
    assert [record.getMessage() for record in caplog.records] == [
        "augmentation on the host (a CPU)",
        f"augmentation on the device (as in the run that is resumed), {stay}",
        f"augmentation on the device (an accelerator), {stay}",
        "augmentation on the host (as in the run that is resumed)",
        "augmentation on the device (an accelerator); each batch is sent, since the images take "
        "0.2 MiB (config.data.resident_mb=0)",
        "augmentation on the device (an accelerator); each batch is sent, since the images are not "
        "held in memory at one size",
    ]


def test_a_resumed_run_keeps_its_backend(tmp_path, monkeypatch) -> None:
    """A run that began on an accelerator goes on with the device's augmentation on a CPU."""
    config = smoke(**{"train.max_steps": 4, "checkpoint.every_steps": 2})
    device = smoke(**{"train.max_steps": 4, "checkpoint.every_steps": 2, "data.backend": "device"})
    train(device, tmp_path / "device")

    with monkeypatch.context() as patch:
        patch.setattr(hjepa_jax.training.feed, "on_cpu", lambda: False)
        patch.setattr("hjepa_jax.runtime.stop_request.StopRequest.agreed", stops_after(2))
        with pytest.raises(RuntimeError, match="interrupted"):
            train(config, tmp_path / "auto")
    assert saved_config(tmp_path / "auto").data.backend == "device"
    train(config, tmp_path / "auto")
    assert saved_config(tmp_path / "auto").data.backend == "device"
    assert differing_arrays(final_state(tmp_path / "device"), final_state(tmp_path / "auto")) == []
    host = smoke(**{"train.max_steps": 4, "data.backend": "host"})
    words = r"config.data.backend \('device' there, 'host' here\)"
    with pytest.raises(CheckpointError, match=words):
        train(host, tmp_path / "auto")


def stops_after(checks: int):
    """Returns a StopRequest.agreed that fails in the check after so many of a run's steps."""
    left = [checks + 1]  # the loop asks once before its first step

    def agreed(self, together: bool) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("interrupted")
        return False

    return agreed


@pytest.mark.parametrize(
    "fields",
    [
        {"train.accumulation": 2, "evaluation.online_probe": True},
        {
            "data.num_local_views": 1,
            "data.local_size": 16,
            "data.num_workers": 1,
            "loss.pairing": "local_to_global",
        },
    ],
)
def test_images_that_stay_on_the_device_train_bit_equal(tmp_path, monkeypatch, fields) -> None:
    # Code that is not optimized at all rounds as its surroundings have it.
    options = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(hjepa_jax.training.prepare, "compiler_options", lambda _: options)
    fields = {"data.backend": "device", "train.max_steps": 5, "train.epochs": 2, **fields}
    for name, limit in (("sent", 0), ("stay", 1)):
        train(smoke(**fields, **{"data.resident_mb": limit}), tmp_path / name)
    assert differing_arrays(final_state(tmp_path / "sent"), final_state(tmp_path / "stay")) == []


def test_numbers_and_parameters_alone_are_sent() -> None:
    """For CIFAR's batch of 512: 17 parameters of two views, instead of 3072 bytes an image."""
    config = cifar100.get_config()
    config.data.update(name="digits", backend="device")
    source = open_split(typed(config), "train")
    assert batch_bytes(typed(config).data, source) == 512 * 2 * 17 * 4
    config.data.resident_mb = 0
    assert batch_bytes(typed(config).data, source) == 512 * (2 * 17 * 4 + 3072)


def test_every_device_holds_the_chosen_images() -> None:
    config = smoke(**{"data.backend": "device"})
    data = typed(config).data
    source, mesh = open_split(typed(config), "train"), sharding.data_mesh()
    (images,) = resident_images(data, source, mesh).values()
    assert images.rows.sharding.is_fully_replicated
    wanted = np.stack([source.record(index).image for index in range(len(source))])
    np.testing.assert_array_equal(images.rows, wanted.reshape(len(source), -1))
    some = np.array([5, 0, 5, len(source) - 1], np.int32)
    np.testing.assert_array_equal(images.take(some), wanted[some])
    config.data.resident_mb = 0
    assert resident_images(typed(config).data, source, mesh) == {}


def test_images_that_do_not_fit_name_the_field(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(sharding, "put_whole", full)
    settings = typed(smoke(**{"data.backend": "device"}))
    with pytest.raises(ConfigError, match=r"0.2 MiB .* config.data.resident_mb=0 \(RESOURCE_EXH"):
        resident_images(settings.data, open_split(settings, "train"), sharding.data_mesh())
