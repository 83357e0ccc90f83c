"""Preparing shards: it resumes, follows changes, and mends what is damaged."""

import re
import subprocess

import forked
import numpy as np
import pytest
from image_files import cifar_files, data_config, write_tar

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources import shards
from hjepa_jax.data.sources.base import ArraySource, decode
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.data.sources.shard_writer import write_shards


def test_interrupted_preparation_continues(folder, tmp_path) -> None:
    source, out = open_root(str(folder), "train", 0), tmp_path / "out"

    class Interrupted(Exception):
        pass

    done = []

    def interrupt(images: int) -> None:
        done.append(images)
        if len(done) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        write_shards(source, "train", out, 2, interrupt)
    assert not shards.is_prepared(out)
    first = (out / "train-00000.array_record").stat().st_mtime_ns
    steps: list[int] = []
    write_shards(source, "train", out, 2, steps.append)
    # Two whole shards were there already; the third is written again.
    assert steps == [2, 2, 1, 1, 1]
    assert (out / "train-00000.array_record").stat().st_mtime_ns == first
    assert shards.open_shards(out, "train").record(6) == source.record(6)
    assert shards.verify(out) == []
    again: list[int] = []
    write_shards(source, "train", out, 2, again.append)
    assert again == [7]
    assert not list(out.glob("*.partial"))


def test_changed_images_are_prepared_anew(folder, tmp_path) -> None:
    out = tmp_path / "out"
    write_shards(open_root(str(folder), "train", 0), "train", out, 2)
    (folder / "train" / "b" / "002.jpg").unlink()
    changed = open_root(str(folder), "train", 0)
    write_shards(changed, "train", out, 3)
    prepared = shards.open_shards(out, "train")
    assert [prepared.record(i) for i in range(len(prepared))] == [
        changed.record(i) for i in range(6)
    ]
    assert sorted(p.name for p in out.glob("*.array_record")) == [
        "train-00000.array_record",
        "train-00001.array_record",
    ]


def test_other_classes_are_not_mixed_in(folder, tmp_path) -> None:
    write_shards(open_root(str(folder), "train", 0), "train", tmp_path / "out")
    images = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="other classes"):
        write_shards(ArraySource("x", images, [0], ["z"]), "val", tmp_path / "out")


@pytest.mark.parametrize(
    "damage", ["labels missing", "labels cut", "labels other", "shard missing"]
)
def test_preparing_again_mends_what_is_damaged(damage, folder, prepared) -> None:
    labels, source = prepared / "train.labels.npy", open_root(str(folder), "train", 0)
    if damage == "labels missing":
        labels.unlink()
    elif damage == "labels cut":
        labels.write_bytes(labels.read_bytes()[:-1])
    elif damage == "labels other":
        np.save(labels, source.labels()[::-1])
    else:
        (prepared / "train-00001.array_record").unlink()
    write_shards(source, "train", prepared, 4)
    again = shards.open_shards(prepared, "train")
    assert [again.record(i) for i in range(7)] == [source.record(i) for i in range(7)]


def test_preparing_follows_no_link_and_believes_no_note(folder, tmp_path) -> None:
    out, secret = tmp_path / "out", tmp_path / "secret"
    out.mkdir()
    secret.write_text("kept")
    for name in ("train.labels.npy", "train.labels.partial", "dataset.partial"):
        (out / name).symlink_to(secret)
    (out / "train-00000.partial").symlink_to(secret)
    source = open_root(str(folder), "train", 0)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, "train", out, 4, interrupt_at(5))
    note = out / "train-00000.json"
    note.write_text(note.read_text().replace('"num_images": 4', '"num_images": 3'))
    write_shards(source, "train", out, 4)
    assert secret.read_text() == "kept"
    again = shards.open_shards(out, "train")
    assert [again.record(i) for i in range(7)] == [source.record(i) for i in range(7)]


def test_a_damaged_index_says_what_to_delete(folder, prepared) -> None:
    (prepared / shards.INDEX).write_text("{")
    source = open_root(str(folder), "train", 0)
    with pytest.raises(ValueError, match=r"dataset\.json is damaged.*Delete that file"):
        write_shards(source, "train", prepared, 4)
    (prepared / shards.INDEX).unlink()
    write_shards(source, "train", prepared, 4)
    assert len(shards.open_shards(prepared, "train")) == 7


def interrupt_at(count: int):
    done: list[int] = []

    def progress(images: int) -> None:
        done.append(images)
        if len(done) == count:
            raise KeyboardInterrupt

    return progress


def test_script_prepares_an_archive_and_verifies(folder, tmp_path) -> None:
    contents = {
        f"pictures/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.jpg")
    }
    archive = write_tar(tmp_path / "images.tar.gz", contents)
    done = run_script(archive, tmp_path / "out", "--splits=train,val")
    assert done.returncode == 0, done.stderr
    prepared = open_root(str(tmp_path / "out"), "train", 0)
    original = open_root(str(folder), "train", 0)
    for index in range(7):
        assert prepared.record(index).encoded == original.record(index).encoded
    assert run_script(tmp_path / "out", "--verify").returncode == 0
    kinds = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert kinds == {".array_record", ".json", ".npy"}


def test_script_refuses_archives_that_escape_and_prepares_cifar(tmp_path) -> None:
    evil = write_tar(tmp_path / "evil.tar", {"../evil/train/a/x.jpg": b"x"}, "w")
    done = run_script(evil, tmp_path / "out")
    assert done.returncode == 1
    unpacking, refused = done.stderr.splitlines()
    assert unpacking.startswith("unpacking ")
    assert re.match(r"hjepa prepare: .*leads out of the folder", refused)
    assert not (tmp_path / "evil").exists()
    cifar = write_tar(tmp_path / "cifar.tar", cifar_files("cifar10"), "w")
    done = run_script(cifar, tmp_path / "shards", "--name", "cifar10")
    assert done.returncode == 0, done.stderr
    expected = open_source(typed(data_config(name="cifar10", root=str(cifar))), "test")
    prepared = open_root(str(tmp_path / "shards"), "test", 0)
    np.testing.assert_array_equal(decode(prepared.record(4)), decode(expected.record(4)))


def run_script(*arguments) -> subprocess.CompletedProcess:
    return forked.run("scripts/prepare_dataset.py", *arguments)
