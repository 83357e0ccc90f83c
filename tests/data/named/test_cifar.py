"""CIFAR archives: folders and tar files give the same images, and hostile ones do nothing."""

import os
import pickle
import tarfile
from collections.abc import Sequence

import numpy as np
import pytest
from image_files import cifar_files, data_config, write_folder, write_tar
from odd_files import replace

from hjepa_jax.config.checks import typed
from hjepa_jax.data.named import cifar
from hjepa_jax.data.named.cifar import CIFAR100_SUPERCLASSES
from hjepa_jax.data.sources.open import open_data_set, open_source

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def opened(name: str, root, split: str = "train"):
    return open_source(typed(data_config(name=name, root=str(root))), split)


def stored(name: str, tmp_path, form: str):
    contents = cifar_files(name)
    inside = {f"{FOLDERS[name]}/{file}": data for file, data in contents.items()}
    if form == "tar.gz":
        return write_tar(tmp_path / f"{name[:5]}-{name[5:]}-python.tar.gz", inside)
    if form == "tar":
        return write_tar(tmp_path / "some.tar", inside, "w")
    for file, data in inside.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(data)
    return tmp_path / FOLDERS[name] if form == "folder" else tmp_path


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["tar.gz", "tar", "folder", "parent folder"])
def test_every_form_gives_the_pickled_pixels_and_labels(name, form, tmp_path) -> None:
    root = stored(name, tmp_path, form)
    train, test = opened(name, root), opened(name, root, "test")
    contents = cifar_files(name)
    files = [f for f in contents if f.startswith("data_batch")] or ["train"]
    batches = [pickle.loads(contents[file]) for file in files]
    rows = np.concatenate([batch[b"data"] for batch in batches])
    key = b"labels" if name == "cifar10" else b"fine_labels"
    labels = [label for batch in batches for label in batch[key]]
    assert len(train) == len(rows)
    assert len(test) == 6
    assert train.labels().tolist() == labels
    assert len(train.class_names) == int(name[5:])
    assert train.class_names[3] == "kind3"
    # A row is 1024 red, then green, then blue values, row by row.
    for index in (0, len(rows) - 1):
        image = train.record(index).image
        assert image[2, 5].tolist() == [rows[index][c * 1024 + 2 * 32 + 5] for c in range(3)]


def test_archive_beside_its_root_is_found(tmp_path) -> None:
    stored("cifar100", tmp_path, "tar.gz")
    assert len(opened("cifar100", tmp_path)) == 6


def test_image_folder_is_read_as_cifar(tmp_path) -> None:
    write_folder(tmp_path, {"train": {"cat": 2, "dog": 3}, "test": {"cat": 1, "dog": 1}})
    assert opened("cifar10", tmp_path).class_names == ("cat", "dog")


class _Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("where", ["data_batch_2", "batches.meta"])
def test_pickles_that_run_code_are_refused(where, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    contents = cifar_files("cifar10")
    contents[where] = pickle.dumps({b"data": _Evil(), b"label_names": _Evil()}, protocol=2)
    root = write_tar(tmp_path / "evil.tar.gz", contents)
    with pytest.raises(ValueError, match=r"system, which is not allowed"):
        opened("cifar10", root)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "payload", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n.", b"cnumpy.core\nshape_base\n."]
)
def test_only_array_classes_load(payload) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        cifar.load_pickle(payload, "x")


def test_old_and_new_pickle_protocols_load() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in range(6):
        loaded = cifar.load_pickle(pickle.dumps({b"data": array}, protocol=protocol), "x")
        np.testing.assert_array_equal(loaded[b"data"], array)
    # NumPy 1 wrote the module's old name.
    old = pickle.dumps({b"data": array}, protocol=2).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(cifar.load_pickle(old, "x")[b"data"], array)
    with pytest.raises(ValueError, match="not a dictionary"):
        cifar.load_pickle(pickle.dumps([1]), "x")


def test_archives_write_nothing_outside(tmp_path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    contents = {f"../../{file}": data for file, data in cifar_files("cifar10").items()}
    root = write_tar(inside / "escape.tar", {**contents, "/etc/evil": b"x"}, "w")
    assert len(opened("cifar10", root)) == 30
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "escape.tar"]


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path) -> None:
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size = 500 * 2**20
    path = tmp_path / "huge.tar"
    path.write_bytes(member.tobuf() + bytes(1024))
    with pytest.raises(ValueError, match=r"data_batch_1 is too large \(524288000 bytes\)"):
        opened("cifar10", path)


def test_links_in_archives_are_not_followed(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(cifar_files("cifar10")["data_batch_1"])
    contents = {name: data for name, data in cifar_files("cifar10").items() if "_1" not in name}
    root = write_tar(tmp_path / "links.tar", contents, "w")
    with tarfile.open(root, "a") as archive:
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    with pytest.raises(FileNotFoundError, match="lacks data_batch_1"):
        opened("cifar10", root)


def test_truncated_archive_names_the_checksum(tmp_path) -> None:
    root = stored("cifar10", tmp_path, "tar.gz")
    root.write_bytes(root.read_bytes()[:2000])
    with pytest.raises(ValueError, match="md5 is not c58f30108f718f92721af3b95e74349a"):
        opened("cifar10", root)
    root.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="Cannot read the archive"):
        opened("cifar10", root)


def test_incomplete_data_is_named(tmp_path) -> None:
    root = stored("cifar10", tmp_path, "folder")
    (root / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3.*cs\.toronto\.edu"):
        opened("cifar10", root)
    with pytest.raises(ValueError, match="'train' and 'test', not 'val'"):
        opened("cifar10", root, "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing to read"):
        opened("cifar10", tmp_path / "empty")


# An array of objects whose type denies that it holds objects: NumPy takes the bytes for pointers.
POINTERS = (
    b"}U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x08t"
    b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U@"
    + b"A" * 64
    + b"tbs."
)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("pipe", "is a named pipe"), ("folder", "is a folder"), ("device", "is a device")],
)
def test_what_is_no_file_in_an_unpacked_folder_is_named(kind, reason, tmp_path) -> None:
    root = stored("cifar10", tmp_path, "folder")
    replace(root / "data_batch_3", kind)
    with pytest.raises(
        ValueError, match=rf"^Cannot read /.*data_batch_3 {reason}[^.]*\. If its md5"
    ):
        opened("cifar10", root)


@pytest.mark.parametrize("kind", ["pointers", "fields", "nothing"])
def test_arrays_of_anything_else_end_no_process(kind) -> None:
    content = POINTERS
    if kind == "fields":
        content = pickle.dumps({b"data": np.zeros(3, [("a", "u1"), ("b", "O")])}, protocol=2)
    elif kind == "nothing":
        # A state that is given to the array's type, and never to the array.
        content = POINTERS.replace(b"\x89U@" + b"A" * 64 + b"tb", b"0000")
    with pytest.raises(ValueError, match="Cannot read x as a CIFAR file"):
        cifar.load_pickle(content, "x")


@pytest.mark.parametrize("stored_type", ["O8", "V8", "f8", "U2", "M8"])
def test_raw_bytes_never_become_objects(stored_type) -> None:
    array = pickle.dumps({b"data": np.arange(384, dtype=np.uint64)}, protocol=2)
    assert array.count(b"u8") == 1
    with pytest.raises(ValueError, match="array of non-integers"):
        cifar.load_pickle(array.replace(b"u8", stored_type.encode()), "x")


@pytest.mark.parametrize(
    "change", [(b"K\x02K\x03", b"K\x02K\x04"), (b"K\x02K\x03", b"K\x02J\xff\xff\xff\xff")]
)
def test_arrays_whose_parts_do_not_fit_are_refused(change) -> None:
    array = pickle.dumps({b"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}, protocol=2)
    assert array.count(change[0]) == 1
    with pytest.raises(ValueError, match=r"Cannot read x as a CIFAR file: .*array"):
        cifar.load_pickle(array.replace(*change), "x")


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((6, 100), np.uint8), b"labels": [0] * 6},
        {b"data": [1, 2], b"labels": [0] * 6},
        {b"data": np.zeros((6, 3072), np.uint8)},
    ],
)
def test_wrong_content_is_refused(batch, tmp_path) -> None:
    contents = {**cifar_files("cifar10"), "data_batch_1": pickle.dumps(batch, protocol=2)}
    with pytest.raises(ValueError, match="is not cifar10 data"):
        opened("cifar10", write_tar(tmp_path / "bad.tar", contents, "w"))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0] * 5, "5 labels for 6 images"),
        ([0] * 5 + [10], "outside 0 .. 9"),
        ([0] * 5 + [-2], r"whole number from -1 .*, not -2"),
        ([0] * 5 + [2**60], r"whole number from -1"),
        ([0] * 5 + [1.0], "not 1.0"),
        ([0] * 5 + ["1"], "not the text '1'"),
        (3, "must be a list, not 3"),
        (None, "must be a list, not null"),
    ],
)
def test_labels_of_a_wrong_kind_are_refused(labels, reason, tmp_path) -> None:
    batch = {b"data": np.zeros((6, 3072), np.uint8), b"labels": labels}
    contents = {**cifar_files("cifar10"), "data_batch_4": pickle.dumps(batch, protocol=2)}
    with pytest.raises(ValueError, match=reason):
        opened("cifar10", write_tar(tmp_path / "bad.tar", contents, "w"))


def test_labels_as_an_array_and_names_of_any_type_are_read(tmp_path) -> None:
    contents = cifar_files("cifar10")
    for name in contents:
        loaded = pickle.loads(contents[name])
        if b"labels" in loaded:
            loaded[b"labels"] = np.array(loaded[b"labels"])
        else:
            loaded[b"label_names"] = ["ä", b"\xff", 3, None, *"efghij"]
        contents[name] = pickle.dumps(loaded)
    plain = opened("cifar10", write_tar(tmp_path / "plain.tar", cifar_files("cifar10"), "w"))
    source = opened("cifar10", write_tar(tmp_path / "other.tar", contents, "w"))
    assert source.labels().tolist() == plain.labels().tolist()
    assert source.class_names == ("ä", "\\xff", "3", "null", *"efghij")


def _label_maps(name: str, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    return open_data_set(typed(data_config(name=name))).label_maps(class_names)


# The coarse label of each fine label, 0 to 99, in the order of the dataset's files.
_COARSE_OF_FINE = (
    "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 "
    "11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 "
    "16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
)


def test_superclasses_are_the_data_sets_own() -> None:
    members = CIFAR100_SUPERCLASSES.values()
    fine = sorted(name for five in members for name in five)
    assert len(set(fine)) == 100
    assert all(list(five) == sorted(five) for five in members)
    assert list(CIFAR100_SUPERCLASSES) == sorted(CIFAR100_SUPERCLASSES)
    # The files number the fine classes in alphabetical order.
    found = _label_maps("cifar100", fine)["superclass"]
    assert found.tolist() == [int(text) for text in _COARSE_OF_FINE.split()]
    turned = _label_maps("cifar100", fine[::-1])["superclass"]
    assert turned.tolist() == found.tolist()[::-1]


def test_other_data_has_no_superclasses(caplog) -> None:
    assert _label_maps("digits", ("0", "1")) == {}
    assert not caplog.records
    assert _label_maps("cifar100", ("0", "1")) == {}
    assert "not those of CIFAR-100" in caplog.text
