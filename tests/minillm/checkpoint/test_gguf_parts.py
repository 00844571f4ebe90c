"""Models split into several GGUF files: any of them opens all, and a file that does not belong there is named."""

import shutil
import struct
import tracemalloc
from pathlib import Path

import converter
import files
import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.checkpoint.gguf import GGUF
from minillm.checkpoint.loader import open_checkpoint
from minillm.errors import UserError

COUNT = 3
MEGABYTES = 4  # that opening files of 50 kB may take, whatever they say


def part(folder: Path, i: int, count: int = COUNT) -> Path:
    return folder / f"m-{i:05}-of-{count:05}.gguf"


def write_parts(folder: Path, more: dict | None = None, **options) -> Path:
    folder.mkdir()
    tensors = files.hf_tensors() | (more or {})
    options = options or {"split_max_tensors": -(-len(tensors) // COUNT)}
    converter.convert(folder / "m.gguf", files.CONFIG, tensors, **options)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts") / "good")


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "m"))


def changed(path: Path, old: bytes, new: bytes) -> None:
    """Overwrite some bytes that are in a file once."""
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"split_max_size": 14_000, "small_first_shard": True}])
def test_any_part_opens_the_whole_model(first, options, tmp_path):
    folder = write_parts(tmp_path / "m", **options)
    count = len(list(folder.iterdir()))
    assert count >= COUNT
    whole = open_checkpoint(converter.convert(tmp_path / "whole.gguf", files.CONFIG, files.hf_tensors()))
    found = open_checkpoint(part(folder, first, count))
    assert found.config == whole.config
    assert found.shapes() == whole.shapes()
    assert list(found.source.names()) == list(whole.source.names())
    for name in whole.source.names():
        np.testing.assert_array_equal(found.source.read(name), whole.source.read(name))


def test_a_model_of_one_part_needs_no_other(tmp_path):
    path = converter.convert(tmp_path / "m.gguf", files.CONFIG, files.hf_tensors())
    source = GGUF(path)
    assert "split.count" not in source.metadata
    path.rename(tmp_path / "m-00001-of-00003.gguf")
    assert GGUF(tmp_path / "m-00001-of-00003.gguf").names() == source.names()


def test_version_2_is_read_like_version_3(folder):
    before = {name: GGUF(part(folder, 1)).read(name) for name in GGUF(part(folder, 1)).names()}
    for path in folder.iterdir():
        raw = path.read_bytes()
        assert raw[:8] == b"GGUF\x03\0\0\0"
        path.write_bytes(b"GGUF\x02\0\0\0" + raw[8:])
    source = GGUF(part(folder, 1))
    assert before.keys() == source.names()
    for name, expected in before.items():
        np.testing.assert_array_equal(source.read(name), expected)


def test_a_big_endian_file_is_refused_by_how_to_turn_it_around(tmp_path):
    path, order = tmp_path / "m.gguf", gguf.GGUFEndian.BIG
    converter.convert(path, files.CONFIG, files.hf_tensors(), endianess=order)
    with pytest.raises(
        UserError, match=r"m\.gguf: is big-endian, version 3, .* gguf-convert-endian .*m\.gguf little"
    ):
        open_checkpoint(path)


def missing(folder):
    part(folder, 2).unlink()


def doubled(folder):
    shutil.copy(part(folder, 1), part(folder, 2))


def swapped(folder):
    part(folder, 2).rename(folder / "x")
    part(folder, 3).rename(part(folder, 2))
    (folder / "x").rename(part(folder, 3))


def of_another_count(folder):
    other = write_parts(folder.parent / "other", split_max_tensors=5)
    shutil.copy(part(other, 2, len(list(other.iterdir()))), part(folder, 2))


def of_a_larger_model(folder):
    other = write_parts(folder.parent / "other", {"lm_head.weight": np.zeros((272, 16), np.float32)})
    shutil.copy(part(other, 3), part(folder, 3))


def twice(folder):
    changed(part(folder, 3), text("blk.1.ffn_gate.weight"), text("blk.0.ffn_gate.weight"))


def unsplit(folder):
    converter.convert(part(folder, 3), files.CONFIG, files.hf_tensors())


def one_more(folder):
    for path in folder.iterdir():
        old = struct.pack("<Ii", 5, len(files.hf_tensors()))
        changed(path, text("split.tensors.count") + old, text("split.tensors.count") + struct.pack("<Ii", 5, 999))


def counted_as(kind: int, value: bytes):
    def change(folder):
        old = text("split.count") + struct.pack("<IH", 2, COUNT)
        changed(part(folder, 1), old, text("split.count") + struct.pack("<I", kind) + value)

    return change


FAULTS = {
    missing: r"m-00002-of-00003\.gguf: is missing; m-00001-of-00003\.gguf is one of split\.count = 3",
    doubled: r"m-00002-of-00003\.gguf: split\.no is 0, expected 1",
    swapped: r"m-00002-of-00003\.gguf: split\.no is 2, expected 1",
    of_another_count: r"m-00002-of-00003\.gguf: split\.count is \d, expected 3 .* another model",
    of_a_larger_model: r"m-00003-of-00003\.gguf: split\.tensors\.count is 21, expected 20 .* another model",
    twice: r"m-00003-of-00003\.gguf: tensor blk\.0\.ffn_gate\.weight is in one of the files before it",
    unsplit: r"m-00003-of-00003\.gguf: split\.no is None, expected a whole number",
    one_more: r"m-00001-of-00003\.gguf: split\.tensors\.count is 999, but its 3 files hold 20 tensors",
    counted_as(
        2, struct.pack("<H", 60_000)
    ): r"m-00001-of-00003\.gguf: split\.count is 60000, expected a name that",
    counted_as(1, b"\xfe\xff"): r"m-00001-of-00003\.gguf: ",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_part_that_does_not_belong_there_is_named(fault, folder):
    fault(folder)
    with pytest.raises(UserError, match=FAULTS[fault]) as caught:
        open_checkpoint(part(folder, 1)).shapes()
    assert "\n" not in str(caught.value)


def test_a_part_under_another_name_is_refused(folder):
    part(folder, 1).rename(folder / "model.gguf")
    with pytest.raises(
        UserError, match=r"model\.gguf: split\.count is 3, expected a name that ends in -00001-of-00003"
    ):
        open_checkpoint(folder / "model.gguf")


@pytest.fixture(scope="module")
def fuzzed(good, tmp_path_factory):
    return shutil.copytree(good, tmp_path_factory.mktemp("parts") / "fuzzed")


@given(which=st.integers(1, COUNT), place=st.integers(0, 1200), junk=st.binary(max_size=8))
@settings(max_examples=60)
def test_cut_or_flipped_parts_never_crash_the_reader_or_fill_memory(which, place, junk, good, fuzzed):
    raw = part(good, which).read_bytes()
    damaged = raw[:place] + junk + raw[place + len(junk) :] if junk else raw[: place * 8]
    part(fuzzed, which).write_bytes(damaged)
    tracemalloc.start()
    try:
        open_checkpoint(part(fuzzed, 1)).shapes()
    except UserError as error:
        assert str(fuzzed) in str(error)
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        part(fuzzed, which).write_bytes(raw)
    assert peak < MEGABYTES << 20
