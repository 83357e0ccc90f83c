"""Parquet files of the Hugging Face hub, from a small fake with the shape of its API."""

import hashlib
import io
import json

import pytest
from file_server import FileServer
from image_files import data_config, encode, photo

from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.data.named import hugging_face
from hjepa_jax.data.named.hugging_face import HuggingFace
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.errors import ConfigError, DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TREE = "/api/datasets/some/pictures/tree/{}?recursive=true"
RESOLVE = "/datasets/some/pictures/resolve/{}/{}"


def table(first: int, count: int) -> bytes:
    """Returns a Parquet file of images with labels, as the hub has them."""
    rows = [
        {"image": {"bytes": encode(photo(first + i), "PNG"), "path": f"{i}.png"}, "label": i % 2}
        for i in range(count)
    ]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def put(server: FileServer, files: dict[str, bytes], revision: str = "main") -> None:
    """Lists files as /api/datasets/.../tree does, and stores them on another host."""
    quoted = revision.replace("/", "%2F")
    entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"}]
    for path, content in files.items():
        size = len(content)
        if path.endswith(".parquet"):
            digits = hashlib.sha256(content).hexdigest()
            pointer = {"oid": digits, "size": size, "pointerSize": 130}
            entries.append(
                {"type": "file", "oid": "1" * 40, "size": size, "lfs": pointer, "path": path}
            )
        else:
            entries.append({"type": "file", "oid": "2" * 40, "size": size, "path": path})
        stored = f"/cdn/{quoted}/{path}?signature=x"
        server.files[stored] = content
        server.redirects[RESOLVE.format(quoted, path)] = server.url(stored, host="localhost")
    server.files[TREE.format(quoted)] = json.dumps(entries).encode()


def data_set(server: FileServer, argument: str, *, download: bool = True) -> HuggingFace:
    class Local(HuggingFace):
        endpoint = server.url("")

    settings = typed(data_config(name=f"hf:{argument}", download=download))
    return Local(settings, argument)


def opened(server: FileServer, argument: str, split: str, **options) -> ImageSource:
    return data_set(server, argument, **options).open(split, ("train", "test"))


SIMPLE = {
    "README.md": b"card",
    ".gitattributes": b"",
    "data/train-00000-of-00002-0123abcd.parquet": table(0, 4),
    "data/train-00001-of-00002-0123abcd.parquet": table(4, 3),
    "data/test-00000-of-00001-0123abcd.parquet": table(9, 2),
    "data/unused-00000-of-00001-0123abcd.parquet": table(20, 2),
}


def test_a_repository_is_downloaded_checked_and_used_offline(server, cache) -> None:
    put(server, SIMPLE)
    train, test = opened(server, "some/pictures", "train"), opened(server, "some/pictures", "test")
    assert (len(train), len(test)) == (7, 2)
    assert train.labels().tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert train.record(5).encoded == encode(photo(5), "PNG")
    folder = cache / "hf/some/pictures/main"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "listing.json",
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    hosts = {headers["Host"].partition(":")[0] for _, headers in server.requests}
    assert hosts == {"127.0.0.1", "localhost"}
    # A listing, and a redirect and a file for each of three.
    assert len(server.requests) == 7
    server.files.clear()
    assert len(opened(server, "some/pictures", "train", download=False)) == 7
    assert len(server.requests) == 7


def test_no_request_without_consent(server, cache) -> None:
    put(server, SIMPLE)
    with pytest.raises(FileNotFoundError, match=r"data\.download=True.*data\.root"):
        opened(server, "some/pictures", "train", download=False)
    assert server.requests == []
    assert not cache.exists()


def test_a_file_that_is_not_the_listed_one_is_deleted(server, cache) -> None:
    put(server, SIMPLE)
    path = "data/train-00001-of-00002-0123abcd.parquet"
    server.files[f"/cdn/main/{path}?signature=x"] = wrong = table(50, 3)
    with pytest.raises(DataError) as caught:
        opened(server, "some/pictures", "train")
    assert f"sha256 {hashlib.sha256(SIMPLE[path]).hexdigest()}" in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    names = {path.name for path in (cache / "hf/some/pictures/main").iterdir()}
    assert "train-00001-of-00002.parquet" not in names
    assert not [name for name in names if ".part" in name]
    # The files that are there already are not sent again.
    server.requests.clear()
    put(server, SIMPLE)
    assert len(opened(server, "some/pictures", "train")) == 7
    assert not [path for path, _ in server.requests if "train-00000" in path or "tree" in path]


def test_the_files_that_the_hub_converted_are_a_revision(server, cache) -> None:
    files = {"default/train/0000.parquet": table(0, 4), "default/test/0000.parquet": table(5, 2)}
    put(server, files, "refs/convert/parquet")
    source = opened(server, "some/pictures@refs/convert/parquet", "train")
    assert len(source) == 4
    assert (cache / "hf/some/pictures/refs%2Fconvert%2Fparquet/listing.json").exists()


def test_one_of_several_configurations_is_named(server, cache) -> None:
    files = {
        "small/train-00000-of-00001.parquet": table(0, 4),
        "large/train-00000-of-00001.parquet": table(0, 6),
    }
    put(server, files)
    with pytest.raises(DataError, match=r"configurations large, small.*'hf:some/pictures/large'"):
        opened(server, "some/pictures", "train")
    with pytest.raises(DataError, match="configurations large, small"):
        opened(server, "some/pictures/medium", "train")
    assert len(opened(server, "some/pictures/small", "train")) == 4
    assert len(opened(server, "some/pictures/large", "train")) == 6


def test_a_listing_of_several_pages_is_read_to_its_end(server, cache) -> None:
    put(server, SIMPLE)
    first = TREE.format("main")
    entries = json.loads(server.files[first])
    following = f"{first}&cursor=abc"
    server.files[first] = json.dumps(entries[:4]).encode()
    server.files[following] = json.dumps(entries[4:]).encode()
    server.headers[first] = {"Link": f'<{server.url(following)}>; rel="next"'}
    assert len(opened(server, "some/pictures", "train")) == 7


def test_a_split_that_is_not_there_is_named(server, cache) -> None:
    put(server, {"data/dev-00000-of-00001.parquet": table(0, 1)})
    with pytest.raises(FileNotFoundError, match="has no split 'train'; it has: dev"):
        opened(server, "some/pictures", "train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "no Parquet files at its revision 'main': append '@refs/convert/parquet'"),
        (b"<html>", "is not the API of the Hugging Face hub"),
        (b'{"error": "x"}', "must be a list"),
        (b'[{"type": "file", "path": "a.parquet"}]', "without a checksum"),
        (b'[{"type": "file", "path": "../;x.parquet", "oid": "", "size": 0}]', "unusual name"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_sentence(content, words, server, cache) -> None:
    server.files[TREE.format("main")] = content
    with pytest.raises(DataError, match=words):
        opened(server, "some/pictures", "train")


def test_an_unknown_repository_and_a_missing_network_are_sentences(server, cache) -> None:
    server.status[TREE.format("main")] = 401
    with pytest.raises(DataError, match="answers 401, so it wants a login, or does not exist"):
        opened(server, "some/pictures", "train")
    away = HuggingFace(typed(data_config(name="hf:some/pictures", download=True)), "some/pictures")
    with pytest.raises(DataError, match=r"huggingface\.co.*refused.*data\.root"):
        away.open("train", ("train", "test"))


def test_an_explicit_root_wins(server, cache, tmp_path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.parquet").write_bytes(table(0, 5))
    settings = typed(data_config(name="hf:some/pictures", download=True, root=f"{tmp_path}/own"))
    assert len(HuggingFace(settings, "some/pictures").open("train", ("train",))) == 5
    assert not cache.exists()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("a/b", ("a/b", None, "main")),
        ("a/b.c-d@v1.0", ("a/b.c-d", None, "v1.0")),
        ("a/b/c/d@refs/convert/parquet", ("a/b", "c/d", "refs/convert/parquet")),
        ("b", None),
        ("a/b@", None),
        ("a/../b", None),
        ("a/b@../../x", None),
        ("/etc/x", None),
        ("a/b?x=1", None),
    ],
)
def test_names_of_repositories(argument, expected) -> None:
    assert hugging_face._parsed(argument) == expected
    config = data_config(name=f"hf:{argument}")
    if expected is None:
        with pytest.raises(ConfigError, match="does not name a repository"):
            resolve(config)
    else:
        assert resolve(config).data.name == f"hf:{argument}"


def test_a_name_without_a_repository_says_what_one_looks_like() -> None:
    with pytest.raises(ConfigError, match="'hf:uoft-cs/cifar10'"):
        resolve(data_config(name="hf"))
