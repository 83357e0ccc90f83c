"""Layouts of image folders: which images and labels are found in each, and what is said of it."""

import pathlib

import pytest
from image_files import encode, photo

from hjepa_jax.data.sources.image_folder import open_folder
from hjepa_jax.errors import DataError


def write(root: pathlib.Path, names: str) -> pathlib.Path:
    """Writes an image, or any other file, for each name."""
    for number, name in enumerate(names.split()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = path.suffix in (".jpg", ".png")
        path.write_bytes(encode(photo(number, 8, 8), "PNG") if image else b"text")
    return root


# Files, labels of those of the training split in order, and what is said.
LAYOUTS = {
    "flat": ("b.jpg a.png c.jpg", [-1] * 3, "no folders name classes"),
    "nested": ("2019/05/a.jpg 2019/06/b.jpg 2020/c.jpg", [-1] * 3, "folders such as 2019 hold"),
    "beside": ("a.jpg b.jpg best/c.jpg", [-1] * 3, "one folder alone"),
    "beside two": ("a.jpg best/c.jpg worst/d.jpg", [-1] * 3, "images lie beside folders"),
    "classes": ("cat/a.jpg cat/b.jpg dog/c.jpg", [0, 0, 1], "labels from 2 folders"),
    "one class": ("cat/a.jpg cat/b.jpg", [-1] * 2, "no folders name classes"),
    "around": ("photos/mine/cat/a.jpg photos/mine/dog/c.jpg", [0, 1], "labels from 2 folders"),
    "with notes": ("cat/a.jpg dog/c.jpg notes/n.txt", [0, 1], "labels from 2 folders"),
    "deep class": ("cat/a.jpg dog/c.jpg dog/more/d.jpg", [0, 1, 1], "labels from 2 folders"),
    "train flat": ("train/a.jpg train/b.jpg", [-1] * 2, "the split in train/, no labels"),
    "train deep": ("train/19/5/a.jpg train/20/b.jpg", [-1] * 2, "such as 19 hold only folders"),
    "train around": ("set/train/a.jpg set/valid/b.jpg", [-1], "the split in train/, no labels"),
    "train classes": ("train/cat/a.jpg train/dog/b.jpg val/cat/c.jpg", [0, 1], "2 folders"),
    "train one": ("train/cat/a.jpg test/cat/c.jpg", [0], "labels from 1 folder"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognized_and_said(name, tmp_path, caplog) -> None:
    files, labels, words = LAYOUTS[name]
    caplog.set_level("INFO")
    source = open_folder(write(tmp_path, files), "train")
    assert source.labels().tolist() == labels
    expected = [f for f in files.split() if "val" not in f and "test" not in f and "txt" not in f]
    assert sorted(source.names) == sorted(expected)
    (line,) = [r.getMessage() for r in caplog.records if "labels" in r.getMessage()]
    assert words in line
    whole = "a folder without splits" in line
    assert whole == ("train" not in files)


def test_where_labels_come_from_can_be_chosen(tmp_path) -> None:
    root = write(tmp_path, "2019/05/a.jpg 2019/06/b.jpg 2020/c.jpg loose.jpg")
    chosen = open_folder(root, "train", labels="folders")
    assert (chosen.class_names, chosen.labels().tolist()) == (("2019", "2020"), [0, 0, 1])
    chosen = open_folder(root, "train", labels="none")
    assert (chosen.class_names, len(chosen)) == ((), 4)
    classes = write(tmp_path / "other", "train/cat/a.jpg train/dog/b.jpg")
    assert open_folder(classes, "train", labels="none").labels().tolist() == [-1, -1]
    with pytest.raises(DataError, match=r"labels is 'folders', but .* has no folders that could"):
        open_folder(write(tmp_path / "flat", "a.jpg"), "train", labels="folders")


def test_a_split_of_another_name_is_not_taken_for_the_whole(tmp_path) -> None:
    root = write(tmp_path, "cat/a.jpg dog/b.jpg")
    with pytest.raises(FileNotFoundError, match=r"no split 'trian' \(folders there: cat, dog\)"):
        open_folder(root, "trian", siblings=("trian", "test"))
    with pytest.raises(FileNotFoundError, match=r"no split 'test': its images are in no split"):
        open_folder(root, "test")
    write(tmp_path, "val/cat/c.jpg")
    with pytest.raises(FileNotFoundError, match=r"no split 'train' \(folders there: cat, dog, val"):
        open_folder(root, "train")


def test_skipped_files_are_counted_once_for_a_flat_folder(tmp_path, caplog) -> None:
    root = write(tmp_path, "a.jpg clip.mp4 notes.txt sub/b.jpg sub/raw.CR2 .hidden.jpg")
    for _ in range(2):
        assert len(open_folder(root, "train")) == 2
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "3 files are left out (.cr2: 1, .mp4: 1, .txt: 1; for example" in line
    assert "besides 1 hidden ones. Images are read from this folder and below" in line
