"""Labels from a CSV file: columns, matching of names, and mistakes as sentences."""

import pathlib

import pytest
from image_files import encode, photo

from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.errors import DataError


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """Images in a nested folder."""
    for name in ("a.jpg", "b.jpg", "deep/c.png", "deep/d.jpg", "deep/a.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(len(name), 8, 8), "PNG"))
    return tmp_path / "images"


def opened(images: pathlib.Path, text: str, split: str = "train"):
    file = images.parent / "labels.csv"
    file.write_text(text)
    return open_root(str(images), split, 0, labels=str(file))


# The images are a.jpg, b.jpg, deep/a.png, deep/c.png, deep/d.jpg.
@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("file,label\na.jpg,x\nb.jpg,y\ndeep/c.png,x\nd.jpg,x\n", [0, 1, -1, 0, 0], "xy"),
        ("\ufeffFileName;Class\r\nb;2\r\nc;10\r\nd.jpg;\r\n", [-1, 0, -1, 1, -1], ("2", "10")),
        ("id\tage\ttarget\na.jpg\t3\tp\n./deep/a.png\t4\tq\n", [0, -1, 1, -1, -1], "pq"),
        ('photo,who\n\ndeep\\c.png,"me, you"\n', [-1, -1, -1, 0, -1], ["me, you"]),
        ("label,file\nz,a.jpg\n", [0, -1, -1, -1, -1], "z"),
    ],
)
def test_labels_are_matched_by_path_or_unique_name(text, labels, names, images, caplog) -> None:
    caplog.set_level("INFO")
    source = opened(images, text)
    assert source.labels().tolist() == labels
    assert source.class_names == tuple(names)
    assert source.record(3).label == labels[3]
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("labels from")]
    assert len(told) == 1
    assert f"{labels.count(-1)} of 5 images without a label" in told[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.jpg,x\na.jpg,x\n", r"lists the image a\.jpg twice: keep one of its rows"),
        ("file,label\nb.jpg,x\nb,x\n", r"lists the image b\.jpg twice"),
        ("file,label\nz.jpg,x\na,y\nq.jpg,x\n", r"lists 3 images .* \(z\.jpg, a, q\.jpg\)"),
        ("file,label\n", "needs a line of titles and a row"),
        ("", "needs a line of titles and a row"),
        ("file,label\na.jpg\n", "has 1 columns in row 2, but 2 titles"),
        ("one,two,three\na.jpg,1,2\n", "has the columns one, two, three: call exactly one"),
        ("file,path,label\na.jpg,1,2\n", "has the columns file, path, label: call exactly one"),
    ],
)
def test_mistakes_are_sentences(text, words, images) -> None:
    with pytest.raises(DataError, match=rf"config\.data\.labels: .*labels\.csv.* {words}"):
        opened(images, text)


def test_a_missing_or_unreadable_file_is_a_sentence(images) -> None:
    with pytest.raises(DataError, match=r"absent\.csv does not exist; the field is 'auto', "):
        open_root(str(images), "train", 0, labels=str(images / "absent.csv"))
    (images / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad\.csv cannot be read"):
        open_root(str(images), "train", 0, labels=str(images / "bad.csv"))


def test_splits_share_the_classes_of_the_file(images) -> None:
    root = images.parent / "set"
    for split, name in (("train", "1.jpg"), ("train", "2.jpg"), ("val", "3.jpg")):
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / split / name).write_bytes(encode(photo(1, 8, 8)))
    text = "file,label\n1.jpg,b\n2.jpg,a\n3.jpg,c\n"
    file = images.parent / "labels.csv"
    file.write_text(text)
    train, test = (open_root(str(root), split, 0, labels=str(file)) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert (train.labels().tolist(), test.labels().tolist()) == ([1, 0], [2])
