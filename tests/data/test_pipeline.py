"""The input pipeline: one and the same stream however it is made, and clear errors."""

import collections
import errno
import multiprocessing
import os
import pathlib
import pickle
import pickletools
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from image_files import OneByOne, data_config, photo, train_stream, write_folder
from PIL import Image

from hjepa_jax.config import base_config, resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.data import batches, loader, pipeline
from hjepa_jax.data.augmentation.device import augment_batch
from hjepa_jax.data.augmentation.host import eval_image
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.sources.base import ArraySource, decode
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.workers import blocks
from hjepa_jax.errors import DataError
from tests.storage.test_files import ODD, make_odd

ROOT = pathlib.Path(__file__).resolve().parents[2]


def array_source(count: int = 70) -> ArraySource:
    images = np.stack([photo(seed, 32, 32) for seed in range(count)])
    return ArraySource("test", images, np.arange(count) % 7, list("abcdefg"))


def collect(config, source, **arguments) -> list[dict[str, np.ndarray]]:
    with train_stream(config, source, **arguments) as stream:
        return list(stream)


def assert_same(first, second) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_shapes_and_types() -> None:
    config = data_config(num_local_views=3, local_size=16)
    (batch,) = collect(config, array_source(), num_steps=1)
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "global_views": ((2, 16, 32, 32, 3), "uint8"),
        "local_views": ((3, 16, 16, 16, 3), "uint8"),
        "label": ((16,), "int32"),
        "index": ((16,), "int32"),
    }
    assert (batch["label"] == batch["index"] % 7).all()
    (batch,) = collect(data_config(), array_source(), num_steps=1)
    assert "local_views" not in batch


def test_epochs_visit_every_image_at_most_once_and_differ() -> None:
    made = collect(data_config(), array_source(), num_steps=8)
    epochs = [np.concatenate([b["index"] for b in made[i : i + 4]]) for i in (0, 4)]
    for epoch in epochs:
        # 70 images make 4 batches of 16; the rest is dropped.
        assert len(set(epoch.tolist())) == 64
    assert (epochs[0] != epochs[1]).any()
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    # The same image looks different in another epoch.
    shared = next(i for i in epochs[0] if i in epochs[1])
    views = [
        np.concatenate([b["global_views"] for b in made[i : i + 4]], axis=1)[
            :, list(epoch).index(shared)
        ]
        for i, epoch in zip((0, 4), epochs)
    ]
    assert (views[0] != views[1]).any()
    assert (views[0][0] != views[0][1]).any()


def test_seed_changes_order_and_views() -> None:
    config, source = data_config(), array_source(16)
    (first,) = collect(config, source, num_steps=1)
    config.seed = 43
    (second,) = collect(config, source, num_steps=1)
    assert (first["index"] != second["index"]).any()
    by_index = [b["global_views"][:, np.argsort(b["index"])] for b in (first, second)]
    assert (by_index[0] != by_index[1]).mean() > 0.5


@pytest.mark.parametrize("start", [0, 3, 4, 6])
def test_threads_and_restarts_do_not_change_the_stream(start) -> None:
    source = array_source()
    reference = collect(data_config(num_local_views=1, local_size=16), source, num_steps=9)
    config = data_config(num_local_views=1, local_size=16, num_threads=3, prefetch_batches=5)
    made = collect(config, source, start_step=start, num_steps=9 - start)
    assert_same(made, reference[start:])


def test_global_views_do_not_depend_on_local_ones() -> None:
    source = array_source(16)
    (without,) = collect(data_config(), source, num_steps=1)
    (with_local,) = collect(data_config(num_local_views=2), source, num_steps=1)
    np.testing.assert_array_equal(without["global_views"], with_local["global_views"])


@pytest.mark.parametrize("count", [2, 4, 16])
def test_processes_share_the_same_global_batches(count) -> None:
    source = array_source()
    whole = collect(data_config(), source, num_steps=5)
    shares = [
        collect(data_config(), source, process_index=i, process_count=count, num_steps=5)
        for i in range(count)
    ]
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            axis = 1 if name == "global_views" else 0
            joined = np.concatenate([share[step][name] for share in shares], axis=axis)
            np.testing.assert_array_equal(joined, values)


def test_worker_processes_make_the_same_stream(tmp_path) -> None:
    root = write_folder(tmp_path, {"train": {"a": 20, "b": 20}}, 70, 80)
    source = open_root(str(root), "train", 1)
    reference = collect(data_config(image_size=24), source, num_steps=7)
    config = data_config(image_size=24, num_workers=2, num_threads=2)
    assert_same(collect(config, source, start_step=2, num_steps=5), reference[2:])
    assert not multiprocessing.active_children()


def test_streams_end_and_close() -> None:
    stream = train_stream(data_config(), array_source())
    for _ in range(3):
        next(stream)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)
    assert collect(data_config(), array_source(), num_steps=0) == []


@pytest.mark.parametrize(
    ("fields", "arguments", "words"),
    [
        ({"batch_size": 71}, {}, "larger than the 70 images"),
        ({"batch_size": 15}, {"process_count": 2}, "multiple of the 2 processes"),
        ({}, {"process_index": 1}, "Process 1 of 1"),
        ({}, {"start_step": -1}, "step -1"),
    ],
)
def test_impossible_streams_are_refused(fields, arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        train_stream(data_config(**fields), array_source(), **arguments)


def test_eval_batches_cover_the_source_in_order_with_a_mask() -> None:
    source = array_source(21)
    with pipeline.eval_batches(typed(data_config(num_threads=3)).data, source, 8) as stream:
        made = list(stream)
    assert [b["image"].shape for b in made] == [(8, 32, 32, 3)] * 3
    assert np.concatenate([b["mask"] for b in made]).tolist() == [True] * 21 + [False] * 3
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in made])[:21], source.images)
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in made])[:21], source.labels())
    assert not made[-1]["image"][5:].any()
    with pytest.raises(ValueError, match="must be positive, not 0"):
        pipeline.eval_batches(typed(data_config()).data, source, 0)


def test_eval_batches_decode_jpegs_at_full_size(tmp_path) -> None:
    root = write_folder(tmp_path, {"test": {"a": 2}}, 300, 400)
    source = open_root(str(root), "test", 0)
    data = typed(data_config(image_size=28, eval_resize=32)).data
    (batch,) = pipeline.eval_batches(data, source, 2)
    with Image.open(root / "test" / "a" / "000.jpg") as image:
        expected = eval_image(image, 28, 32)
    np.testing.assert_array_equal(batch["image"][0], expected)


def test_augmented_pairs_are_two_views_of_seeded_images() -> None:
    data, source = typed(data_config()).data, array_source(30)
    first, second = pipeline.augmented_pairs(data, source, 12, seed=1)
    assert first.shape == second.shape == (12, 32, 32, 3)
    assert (first != second).mean() > 0.5
    again = pipeline.augmented_pairs(data, source, 12, seed=1)
    np.testing.assert_array_equal(first, again[0])
    assert (first != pipeline.augmented_pairs(data, source, 12, seed=2)[0]).any()
    assert len(pipeline.augmented_pairs(data, source, 99, seed=1)[0]) == 30
    # Without augmentation but a resize to the same size, both views are the image itself.
    plain = data_config(global_scale=(1.0, 1.0))
    plain.data.augment.update(
        flip_probability=0.0,
        jitter_probability=0.0,
        gray_probability=0.0,
        blur_probability=0.0,
        solarize_probability=0.0,
        crop_aspect=(1.0, 1.0),
    )
    first, second = pipeline.augmented_pairs(typed(plain).data, source, 12, seed=1)
    np.testing.assert_array_equal(first, second)
    assert all(any((view == image).all() for image in source.images) for view in first)


def damaged_folder(tmp_path) -> pathlib.Path:
    root = write_folder(tmp_path, {"train": {"a": 12, "b": 12}})
    for name in ("a/003.jpg", "b/007.jpg"):
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:300])
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_stops_with_its_path(tmp_path, workers) -> None:
    source = open_root(str(damaged_folder(tmp_path)), "train", 0)
    config = data_config(batch_size=24, num_workers=workers)
    with pytest.raises(CorruptImageError, match=r"train/[ab]/00[37]\.jpg.*on_corrupt='skip'"):
        collect(config, source, num_steps=1)


def test_corrupt_images_are_replaced_reported_once_and_counted(tmp_path, caplog) -> None:
    source = open_root(str(damaged_folder(tmp_path)), "train", 0)
    made = {}
    for threads in (1, 2):
        config = data_config(batch_size=24, on_corrupt="skip", num_threads=threads)
        caplog.clear()
        with train_stream(config, source, num_steps=3) as stream:
            made[threads] = list(stream)
        assert stream.corrupt_count == 6
        messages = [r.getMessage() for r in caplog.records if "Skipped" in r.getMessage()]
        # Each image is named once, however often it is read.
        names = sorted(m.split(": ")[0].rsplit("/", 1)[1] for m in messages)
        assert names == (["003.jpg", "007.jpg"] if threads == 1 else [])
    assert_same(made[1], made[2])
    for batch in made[1]:
        assert not {3, 19} & set(batch["index"].tolist())
        # 22 images are whole; the replacements of the other two are two different ones.
        assert np.bincount(batch["index"], minlength=24).max() == 2
        assert (batch["label"] == batch["index"] // 12).all()


def test_corrupt_images_are_masked_in_evaluation(tmp_path) -> None:
    source = open_root(str(damaged_folder(tmp_path)), "train", 0)
    with pipeline.eval_batches(typed(data_config(on_corrupt="skip")).data, source, 24) as stream:
        (batch,) = stream
    assert np.flatnonzero(~batch["mask"]).tolist() == [3, 19]
    assert stream.corrupt_count == 2
    with pytest.raises(CorruptImageError, match=r"a/003\.jpg"):
        next(pipeline.eval_batches(typed(data_config()).data, source, 24))


def test_all_images_corrupt_and_vanished_images_end_the_stream(tmp_path) -> None:
    root = write_folder(tmp_path, {"train": {"a": 16}})
    source = open_root(str(root), "train", 0)
    for path in (root / "train" / "a").iterdir():
        path.write_bytes(b"rubbish")
    with pytest.raises(CorruptImageError, match="the dataset is damaged"):
        collect(data_config(on_corrupt="skip"), source, num_steps=1)
    for path in (root / "train" / "a").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="Cannot read image"):
        collect(data_config(on_corrupt="skip"), source, num_steps=1)


@pytest.mark.parametrize("kind", [*ODD, "broken link"])
def test_what_is_no_file_costs_its_own_image_alone(kind, tmp_path, caplog) -> None:
    root = write_folder(tmp_path, {"train": {"a": 16, "b": 8}})
    source = open_root(str(root), "train", 0)
    path = root / "train" / "a" / "003.jpg"
    path.unlink()
    if kind == "broken link":
        path.symlink_to("gone.jpg")
    else:
        make_odd(kind, path)
    # Whether it was there at the listing or came later; a folder is none of the listed images.
    again = open_root(str(root), "train", 0)
    assert len(again) == (23 if kind == "folder" else 24)
    for found in (source, again)[: len(again) - 22]:
        made = collect(data_config(batch_size=24, on_corrupt="skip"), found, num_steps=2)
        assert all(3 not in batch["index"] for batch in made)
        with pytest.raises(CorruptImageError, match=r"a/003\.jpg.*on_corrupt='skip'") as caught:
            collect(data_config(batch_size=24), found, num_steps=1)
        assert str(caught.value).lower().count("remove or replace it") == 1
        found.fingerprint()
    told = {r.getMessage() for r in caplog.records if "Skipped" in r.getMessage()}
    assert len(told) == 1


def test_a_lack_of_file_handles_is_no_corrupt_image(tmp_path, monkeypatch) -> None:
    source = open_root(str(write_folder(tmp_path, {"train": {"a": 16}})), "train", 0)

    def fail(index: int):
        raise OSError(errno.EMFILE, "Too many open files", "x.jpg")

    monkeypatch.setattr(source, "record", fail)
    with pytest.raises(DataError, match="Too many open files") as caught:
        collect(data_config(on_corrupt="skip"), source, num_steps=1)
    assert not isinstance(caught.value, CorruptImageError)


@pytest.mark.parametrize("shape", [(3, 10_000), (10_000, 3), (1, 2_000), (2_000, 1), (90, 1_000)])
@pytest.mark.parametrize("backend", ["host", "device"])
def test_thin_images_are_trained_on_and_evaluated(shape, backend, tmp_path) -> None:
    root = write_folder(tmp_path, {"train": {"a": 2}}, *shape)
    source = open_root(str(root), "train", 0)
    fields = dict(batch_size=2, image_size=24, backend=backend, num_local_views=1, local_size=16)
    (batch,) = collect(data_config(**fields), source, num_steps=1)
    made = augment_batch(batch, data_config(**fields).data)
    assert made["global_views"].shape == (2, 2, 24, 24, 3)
    assert np.asarray(made["local_views"]).std() > 1
    data = typed(data_config(**fields, eval_resize=28)).data
    with pipeline.eval_batches(data, source, 2) as stream:
        (batch,) = stream
    middle = np.asarray(decode(source.record(0)))[shape[0] // 2, shape[1] // 2]
    # The crop is of the middle of the image.
    assert np.abs(batch["image"][0, 12, 12].astype(int) - middle).max() < 60


def test_a_thin_image_is_not_made_huge_on_the_way(monkeypatch) -> None:
    made = []
    original = Image.Image.resize

    def resize(image, size, *arguments, **options):
        made.append(size)
        return original(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for height, width in ((1, 60_000), (60_000, 1), (2, 9_000)):
        assert eval_image(photo(0, height, width), 224, 256).shape == (224, 224, 3)
    assert max(max(size) for size in made[-1:]) == 224
    assert [size for size in made if size[0] * size[1] > 10_000_000] == []


def test_signals_to_the_whole_group_leave_the_workers_at_work() -> None:
    """Ctrl-C and job schedulers signal all processes; stopping is the parent's to arrange."""
    config = data_config(num_workers=1)
    with train_stream(config, array_source(), num_steps=12) as stream:
        next(stream)
        for number in (signal.SIGINT, signal.SIGTERM):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, number)
        assert sum(1 for _ in stream) == 11
    assert not multiprocessing.active_children()


def test_killed_worker_is_an_error_within_seconds() -> None:
    config = data_config(num_workers=2)
    with train_stream(config, array_source()) as stream:
        next(stream)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        start = time.perf_counter()
        # What was made before comes first.
        with pytest.raises(DataError, match="worker process of the input pipeline died"):
            collections.deque(stream, maxlen=0)
        assert time.perf_counter() - start < 15
    assert not multiprocessing.active_children()


PARENT = """
import multiprocessing, sys, time
sys.path[:0] = [".", "tests", "tests/support"]
from absl import flags
from tests.data import test_pipeline
if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    config = test_pipeline.data_config(num_workers=2)
    stream = test_pipeline.train_stream(config, test_pipeline.array_source())
    for _ in range(4):
        next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def running(pid: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(running(pid) for pid in pids)
    mine = f"*hjepa_jax-*-{parent.pid}-*"
    assert not blocks.FOLDER.is_dir() or list(blocks.FOLDER.glob(mine))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.perf_counter() + 10
    while any(running(pid) for pid in pids):
        assert time.perf_counter() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    assert list(blocks.FOLDER.glob(mine)) == []


def test_groups_bound_memory_and_keep_every_image(monkeypatch) -> None:
    source = OneByOne(array_source(30))
    chosen = loader.Loader(typed(data_config()).data, 0, source)
    monkeypatch.setattr(loader, "_GROUP_PIXELS", 4 * 32 * 32)
    groups = list(chosen.groups(np.arange(30)[::-1], []))
    assert [part.start for part, _ in groups] == [0, 5, 10, 15, 20, 25]
    assert [x.number for _, group in groups for x in group] == list(range(30))[::-1]
    config = data_config()
    (small,) = collect(config, source, num_steps=1)
    monkeypatch.undo()
    (large,) = collect(config, source, num_steps=1)
    assert_same([small], [large])


def test_worker_processes_receive_the_section_data_and_no_other() -> None:
    data = resolve(base_config()).data
    for make in (
        batches.BatchMaker(data, 0, array_source()),
        pipeline._EvalBatchMaker(data, array_source(), 4),
    ):
        found = {
            argument.split(" ")[0]
            for _, argument, _ in pickletools.genops(pickle.dumps(make))
            if isinstance(argument, str) and argument.startswith("hjepa_jax.config")
        }
        assert found == {"hjepa_jax.config.data"}
