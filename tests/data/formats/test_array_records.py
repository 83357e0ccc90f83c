"""ArrayRecord files: chunks of every size are followed, and absurd claims refused unread."""

import random

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from hjepa_jax.data.formats import array_records
from hjepa_jax.data.formats.array_records import open_array_record


def write(path, sizes, options: str = "group_size:1", fill=None) -> list[bytes]:
    rng = random.Random(0)
    records = [bytes(size) if fill == "zeros" else rng.randbytes(size) for size in sizes]
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return records


@pytest.mark.parametrize("options", ["group_size:1", "group_size:1,uncompressed", "group_size:64"])
@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [0, 0, 3],
        [200_000, 1, 70_000],
        list(range(65_300, 65_560, 20)),
        [random.Random(n).randrange(3000) for n in range(300)],
    ],
    ids=["one", "empty", "long", "blocks", "many"],
)
def test_intact_files_are_opened(options, sizes, tmp_path) -> None:
    path = tmp_path / "x.array_record"
    records = write(path, sizes, options)
    reader = open_array_record(path, len(sizes))
    assert [reader[i] for i in range(len(sizes))] == records


def test_a_header_across_the_border_of_blocks_is_read(tmp_path) -> None:
    """Every place that a chunk's header can have at the border of two blocks."""
    for size in range(65_400, 65_460, 4):
        path = tmp_path / f"{size}.array_record"
        write(path, [size, 100], "group_size:1,uncompressed")
        assert len(open_array_record(path, 2)) == 2


@pytest.mark.parametrize("sizes", [[9 << 20], [10, 9 << 20, 10], [9 << 20] * 3])
def test_a_record_that_unpacks_to_an_absurd_size_is_refused(sizes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(array_records, "_MAX_CHUNK_BYTES", 8 << 20)
    path = tmp_path / "x.array_record"
    write(path, sizes, fill="zeros")
    assert path.stat().st_size < 300_000
    with pytest.raises(
        ValueError, match=r"x.array_record is damaged \(a record at byte \d+ claims"
    ):
        open_array_record(path, len(sizes))


@pytest.mark.parametrize("kept", [0, 10, 70, 65_536, 100_000, 131_071])
def test_what_is_cut_off_or_follows_no_chunk_is_refused(kept, tmp_path) -> None:
    path = tmp_path / "x.array_record"
    write(path, [1000, 2000])
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(ValueError, match="is damaged"):
        open_array_record(path, 2)
    # Nothing but padding follows the last chunk, which begins with the second block.
    if kept <= 65_536:
        path.write_bytes(content[:kept] + b"\xff" * (len(content) - kept))
        with pytest.raises(ValueError, match="is damaged"):
            open_array_record(path, 2)
