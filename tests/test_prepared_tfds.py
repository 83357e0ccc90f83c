"""A TensorFlow data set prepared as ArrayRecord is read without TensorFlow."""

import pickle
import sys

import numpy as np
import pytest
from image_files import data_config, encode, photo

from hjepa_jax.data.sources import decode, open_source


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepares a tiny data set with TFDS itself, from encoded bytes."""
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
    return open_source(data_config(name=f"tfds:{name}", root=str(root)).data, split)


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
