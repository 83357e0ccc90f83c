"""Labels that are missing, and one numbering of the classes for all splits, of every source."""

import json
import pathlib
import pickle
import types

import numpy as np
import pytest
from image_files import cifar_files, data_config, encode, photo, train_stream, write_folder
from PIL import Image

from hjepa_jax.config.checks import typed
from hjepa_jax.data import pipeline
from hjepa_jax.data.augmentation import host
from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.base import ArraySource, ImageSource
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.data.sources.shard_writer import write_shards
from hjepa_jax.errors import DataError
from hjepa_jax.interop import export_features

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write_parquet(path: pathlib.Path, labels, names=None) -> None:
    """A file with an image for each label; no label column for None."""
    count = 4 if labels is None else len(labels)
    images = [{"bytes": encode(photo(i), "PNG"), "path": None} for i in range(count)]
    columns = {"image": images} if labels is None else {"image": images, "label": labels}
    table = pyarrow.table(columns)
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def of_parquet(labels, names=None):
    def make(folder: pathlib.Path) -> ImageSource:
        write_parquet(folder / "train.parquet", labels, names)
        return open_root(str(folder), "train", 0)

    return make


def of_array(labels, names):
    def make(folder: pathlib.Path) -> ImageSource:
        images = np.stack([photo(seed, 8, 8) for seed in range(len(labels))])
        return ArraySource("array", images, labels, names)

    return make


def of_shards(labels, names):
    def make(folder: pathlib.Path) -> ImageSource:
        write_shards(of_array(labels, names)(folder), "train", folder)
        return open_root(str(folder), "train", 0)

    return make


def of_cifar(labels):
    def make(folder: pathlib.Path) -> ImageSource:
        contents = cifar_files("cifar10", per_file=1)
        rows = np.zeros((1, 3072), np.uint8)
        for number, label in enumerate(labels):
            content = pickle.dumps({b"data": rows, b"labels": [label]}, protocol=2)
            contents[f"data_batch_{number + 1}"] = content
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return open_source(typed(data_config(name="cifar10", root=str(folder))), "train")

    return make


def flat_folder(folder: pathlib.Path) -> ImageSource:
    (folder / "train").mkdir()
    for number in range(4):
        (folder / "train" / f"{number}.png").write_bytes(encode(photo(number), "PNG"))
    return open_root(str(folder), "train", 0)


def of_tfds(labels):
    def make(folder: pathlib.Path) -> ImageSource:
        import tensorflow_datasets as tfds

        label = {} if labels is None else {"label": tfds.features.ClassLabel(names=["a", "b"])}
        image = {"image": tfds.features.Image(shape=(None, None, 3))}

        class Partly(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = folder

            def _info(self):
                features = tfds.features.FeaturesDict(image | label)
                return self.dataset_info_from_configs(features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for number in range(4):
                    one = {} if labels is None else {"label": labels[number]}
                    yield number, {"image": encode(photo(number), "PNG")} | one

        Partly(data_dir=folder, file_format="array_record").download_and_prepare()
        return open_source(typed(data_config(name="tfds:partly", root=str(folder))), "train")

    return make


NAN = float("nan")
CASES = {
    "parquet null": (of_parquet([0, 1, None, None, 2]), [0, 1, -1, -1, 2], "012"),
    "parquet -1": (of_parquet([0, -1, 2, -1]), [0, -1, 1, -1], "02"),
    "parquet nan": (of_parquet([1.0, NAN, 0.0, NAN]), [1, -1, 0, -1], "01"),
    "parquet text and null": (of_parquet(["b", None, "a", ""]), [1, -1, 0, -1], "ab"),
    "parquet bytes": (of_parquet([b"b", None, b"", b"a"]), [1, -1, -1, 0], "ab"),
    "parquet names": (of_parquet([1, None, -1, 0], ["a", "b"]), [1, -1, -1, 0], "ab"),
    "parquet of nulls": (of_parquet(pyarrow.nulls(4)), [-1] * 4, ""),
    "parquet without a column": (of_parquet(None), [-1] * 4, ""),
    "array": (of_array([1, -1, 0, -1], ["a", "b"]), [1, -1, 0, -1], "ab"),
    "array of none": (of_array([-1, -1], []), [-1, -1], ""),
    "shards": (of_shards([1, -1, 0, -1], ["a", "b"]), [1, -1, 0, -1], "ab"),
    "shards of none": (of_shards([-1, -1, -1], []), [-1] * 3, ""),
    "cifar": (of_cifar([3, -1, -1, 0, 9]), [3, -1, -1, 0, 9], [f"kind{i}" for i in range(10)]),
    "flat folder": (flat_folder, [-1] * 4, ""),
    "tfds": (of_tfds([1, -1, 0, -1]), [1, -1, 0, -1], "ab"),
    "tfds without a feature": (of_tfds(None), [-1] * 4, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_missing_labels_are_minus_one_and_no_class(case, tmp_path) -> None:
    make, labels, names = CASES[case]
    source = make(tmp_path)
    got = [source.record(index).label for index in range(len(source))]
    if case.startswith("tfds"):
        # TFDS shuffles when it prepares.
        assert sorted(got) == sorted(labels)
    else:
        assert got == labels
    assert source.labels().tolist() == got
    assert source.labels().dtype == np.int32
    assert source.class_names == tuple(names)
    assert len(source.class_names) == len(names)
    assert pickle.loads(pickle.dumps(source)).labels().tolist() == got
    config = data_config(batch_size=2, image_size=16)
    with train_stream(config, source, num_steps=1) as stream:
        (batch,) = stream
    assert batch["label"].tolist() == [got[index] for index in batch["index"]]
    with pipeline.eval_batches(typed(config).data, source, len(source)) as stream:
        (batch,) = stream
    assert batch["label"].tolist() == got
    assert batch["mask"].all()


def test_labels_below_minus_one_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"outside 0 \.\. 1 and is not -1"):
        of_array([0, -2], ["a", "b"])(tmp_path)
    for wrong in ([0, -2], [0, 2], [0.5, 1.0]):
        with pytest.raises(DataError, match=r"label .* is outside 0 \.\. 1"):
            of_parquet(wrong, ["a", "b"])(tmp_path)
    with pytest.raises(DataError, match="expected one number or text each"):
        of_parquet([[0, 1], [1]])(tmp_path)


def opened(root: pathlib.Path, train: str = "train", test: str = "test"):
    names = {"train_split": train, "test_split": test}
    config = data_config(name="folder", root=str(root), **names)
    settings = typed(config)
    return open_source(settings, train), open_source(settings, test)


def classes_of(source: ImageSource) -> list[str]:
    return [source.class_names[label] for label in source.labels()]


FOLDERS = [
    ({"cat": 1, "dog": 1}, {"dog": 2}, ("cat", "dog"), [1, 1]),
    ({"cat": 1, "dog": 1}, {"ant": 1, "dog": 1}, ("cat", "dog", "ant"), [2, 1]),
    ({"dog": 1}, {"cat": 1, "dog": 1}, ("dog", "cat"), [1, 0]),
    ({"b": 1, "a": 1}, {"a": 1, "b": 1}, ("a", "b"), [0, 1]),
]


@pytest.mark.parametrize(("train", "test", "names", "labels"), FOLDERS)
@pytest.mark.parametrize("stored", ["folder", "text", "shards"])
def test_a_class_has_one_number_in_every_split(
    stored, train, test, names, labels, tmp_path, caplog
) -> None:
    root = tmp_path / "data"
    if stored == "text":
        for split, counts in (("train", train), ("test", test)):
            write_parquet(root / f"{split}.parquet", [n for n in sorted(counts, reverse=True)])
        root_test_order = sorted(test, reverse=True)
    else:
        write_folder(root, {"train": train, "test": test})
        root_test_order = sorted(test)
    if stored == "shards":
        for split, source in zip(("train", "test"), opened(root)):
            write_shards(source, split, tmp_path / "shards")
        root = tmp_path / "shards"
    found, tested = opened(root)
    assert found.class_names == tested.class_names == names
    assert {name: names.index(name) for name in classes_of(tested)} == {
        name: names.index(name) for name in test
    }
    if stored == "folder":
        assert sorted(set(tested.labels())) == sorted(set(labels))
    assert sorted(set(classes_of(found))) == sorted(train)
    assert set(root_test_order) == set(classes_of(tested))
    told = [r.getMessage() for r in caplog.records if "has no images of" in r.getMessage()]
    assert bool(told) == (set(train) != set(test))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("b", "of 1 class that other splits have (b)."),
        ("bcdef", "of 5 classes that other splits have (b, c, d, e, f)."),
        ("bcdefg", "of 6 classes that other splits have (b, c, d, e, f, ...)."),
    ],
)
def test_missing_classes_are_counted_and_named(missing, words, tmp_path, caplog) -> None:
    splits.number_classes(str(tmp_path), {"train": ["a", *missing], "test": ["a"]})
    assert caplog.messages == [f"{tmp_path}: the split 'test' has no images {words}"]


@pytest.mark.parametrize(
    ("train", "test", "names", "labels"),
    [
        (([1, 0], ["cat", "dog"]), ([0], ["dog"]), ("cat", "dog"), [1]),
        (([1, 0], ["cat", "dog"]), ([1, 0], None), ("cat", "dog"), [1, 0]),
        (([0], ["cat"]), ([0, 1], ["dog", "cat"]), ("cat", "dog"), [1, 0]),
        (([5, 2, 11], None), ([2, 7], None), ("2", "5", "11", "7"), [0, 3]),
        (([0, 1], ["cat", "dog"]), (["dog", "ant"], None), ("cat", "dog", "ant"), [1, 2]),
    ],
)
def test_numbers_of_parquet_files_go_by_the_names(train, test, names, labels, tmp_path) -> None:
    write_parquet(tmp_path / "train.parquet", *train)
    write_parquet(tmp_path / "test.parquet", *test)
    found, tested = opened(tmp_path)
    assert found.class_names == tested.class_names == names
    assert tested.labels().tolist() == labels


def test_three_splits_are_numbered_and_prepared_together(tmp_path) -> None:
    counts = {"train": {"b": 1, "c": 1}, "val": {"a": 1, "c": 1}, "test": {"d": 1}}
    write_folder(tmp_path / "images", counts)
    config = data_config(name="folder", root=str(tmp_path / "images"))
    for split in counts:
        source = open_source(typed(config), split, list(counts))
        assert source.class_names == ("b", "c", "a", "d")
        write_shards(source, split, tmp_path / "shards")
    assert classes_of(open_root(str(tmp_path / "shards"), "val", 0)) == ["a", "c"]


def test_parts_of_parquet_files_may_lack_the_labels(tmp_path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ["a", None])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", pyarrow.nulls(2))
    source = open_root(str(tmp_path), "train", 0)
    assert source.labels().tolist() == [0, -1, -1, -1]


def encoding_run(root: pathlib.Path, **data) -> types.SimpleNamespace:
    """A loaded run whose features are four of the pixels."""
    config = data_config(name="folder", root=str(root), image_size=16, **data)
    return types.SimpleNamespace(
        settings=typed(config),
        step=2,
        encoder=types.SimpleNamespace(
            batch_size=4,
            encode_batch=lambda images: images.reshape(len(images), -1)[:, :4].astype(np.float32),
        ),
    )


def test_exported_features_carry_the_names_of_their_files(tmp_path) -> None:
    root = write_folder(tmp_path / "data", {"cat": {"old": 3, "new": 3}, "dog": {"": 4}})
    (root / "cat/new/001.jpg").write_bytes(b"damaged")
    run = encoding_run(root, test_holdout=3, on_corrupt="skip")
    listed = [*(f"cat/{age}/00{n}.jpg" for age in ("new", "old") for n in range(3))]
    listed += [f"dog/00{n}.jpg" for n in range(4)]
    found = []
    for split in ("train", "test"):
        export_features.export_features(run, tmp_path / "x.npz", split)
        export_features.export_features(run, tmp_path / "x.parquet", split)
        with np.load(tmp_path / "x.npz") as saved:
            names, features = saved["names"].tolist(), saved["features"]
        table = parquet.read_table(tmp_path / "x.parquet")
        assert table["name"].to_pylist() == names
        for name, row in zip(names, features, strict=True):
            image = Image.open(root / name).convert("RGB")
            np.testing.assert_array_equal(row, host.eval_image(image, 16, None).ravel()[:4])
        found += names
    assert sorted(found) == sorted(set(listed) - {"cat/new/001.jpg"})


def test_exported_features_have_the_same_numbers_in_every_split(tmp_path) -> None:
    write_folder(tmp_path / "data", {"train": {"cat": 2, "dog": 2}, "test": {"dog": 3}})
    run = encoding_run(tmp_path / "data")
    numbers = {}
    for split in ("train", "test"):
        found, names, _ = export_features.split_features(run, split)
        export_features.save_features(tmp_path / f"{split}.npz", found, names)
        with np.load(tmp_path / f"{split}.npz") as saved:
            numbers[split] = {
                str(saved["class_names"][label]): int(label) for label in saved["labels"]
            }
    assert numbers == {"train": {"cat": 0, "dog": 1}, "test": {"dog": 1}}
