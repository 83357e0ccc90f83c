"""A TensorFlow dataset prepared as ArrayRecord is read without TensorFlow."""

import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from image_files import data_config, encode, photo

from hjepa_jax.config.checks import typed
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.sources.base import decode
from hjepa_jax.data.sources.open import open_source


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepares a tiny dataset with TFDS itself, from encoded bytes."""
    import tensorflow_datasets as tfds

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        pkg_dir_path = tmp_path_factory.mktemp("package")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["round", "square"]),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(5, 0), "test": self._generate_examples(3, 50)}

        def _generate_examples(self, count, seed):
            for number in range(count):
                yield number, {"image": encode(photo(seed + number), "PNG"), "label": number % 2}

    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyShapes(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


def opened(root, split: str = "train", name: str = "tiny_shapes"):
    return open_source(typed(data_config(name=f"tfds:{name}", root=str(root))), split)


def test_examples_are_read(data_dir) -> None:
    source = opened(data_dir)
    assert (len(source), source.class_names) == (5, ("round", "square"))
    # TFDS shuffles when it prepares: compare as sets.
    got = {(decode(source.record(i)).tobytes(), source.record(i).label) for i in range(5)}
    assert got == {(photo(number).tobytes(), number % 2) for number in range(5)}
    assert source.labels().tolist() == [source.record(i).label for i in range(5)]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(decode(again.record(3)), decode(source.record(3)))
    assert source.fingerprint() != opened(data_dir, "test").fingerprint()
    assert len(opened(data_dir, name="tiny_shapes:1.2.0")) == 5
    assert "tensorflow" not in sys.modules


def test_what_is_not_there_is_explained(data_dir, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no split 'val'; it has: "):
        opened(data_dir, "val")
    with pytest.raises(FileNotFoundError, match=r"no prepared data in .*tfds build tiny_shapes:9"):
        opened(data_dir, name="tiny_shapes:9.9.9")
    other = tmp_path / "tiny_shapes" / "1.0.0"
    other.mkdir(parents=True)
    (other / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="not stored as ArrayRecord"):
        opened(tmp_path)


@pytest.fixture
def version(data_dir, tmp_path):
    """A copy of the prepared version, to be damaged."""
    return shutil.copytree(data_dir / "tiny_shapes" / "1.2.0", tmp_path / "tiny_shapes" / "1.2.0")


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("dataset_info.json", '"splits"', '"spirits"', "the field 'splits' is missing"),
        ("dataset_info.json", '"tiny_shapes"', "3", "the field 'name' must be text, not 3"),
        ("dataset_info.json", '"5"', "[]", r"'splits\[0\].shardLengths\[0\]' must be text"),
        ("dataset_info.json", '"5"', '"6"', "has 5 records instead of 6"),
        ("dataset_info.json", '"5"', '"999999999999"', "has 5 records instead of 999999999999"),
        ("dataset_info.json", '"5"', '"-5"', "metadata in .* is damaged|no examples|instead of"),
        ("dataset_info.json", '"5"', '"many"', "metadata in .* is damaged"),
        ("dataset_info.json", "{", "[" * 10_000, "nested more than 64 deep"),
        ("features.json", '"2"', '"999999999999"', "is damaged|not a ClassLabel"),
        ("features.json", '"2"', "[]", "metadata in .* is damaged"),
        ("features.json", "label_feature.Cl", "label_feature.Kl", "metadata in .* is damaged"),
        ("features.json", "tensorflow_datasets.core.features.image_feature", "os", "'os.Image'"),
        ("features.json", "image_feature.Image", "text_feature.Text", "damaged|not an Image"),
        ("features.json", "{", "\x00", "cannot be read as JSON"),
    ],
)
def test_metadata_that_does_not_fit_is_one_sentence(
    file, old, new, sentence, version, tmp_path
) -> None:
    path = version / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        opened(tmp_path)


def test_a_module_that_the_metadata_names_is_not_imported(version, tmp_path, monkeypatch) -> None:
    (tmp_path / "evil_features.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = version / "features.json"
    old = "tensorflow_datasets.core.features.image_feature"
    path.write_text(path.read_text().replace(old, "evil_features"))
    with pytest.raises(ValueError, match="only those of tensorflow_datasets are read"):
        opened(tmp_path)


def test_a_damaged_example_costs_its_own_image(version, tmp_path) -> None:
    good = [opened(tmp_path).record(i) for i in range(5)]
    (path,) = version.glob("*train.array_record*")
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    source = opened(tmp_path)
    assert [source.record(i) for i in range(1, 5)] == good[1:]
    with pytest.raises(CorruptImageError, match=r"Cannot read tiny_shapes.* example 0: Corrupted"):
        source.record(0)
    assert source.labels().tolist() == [-1, *(record.label for record in good[1:])]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="pipe"):
        opened(tmp_path)
