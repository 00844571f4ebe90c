"""Safetensors files: what the format's own library wrote is read to the bit, and no other file does any harm."""

import json
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from minillm.checkpoint.safetensors import DTYPES, SINGLE, Safetensors
from minillm.errors import UserError

NAME, OTHER = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"
KILOBYTES = 300  # that refusing a file of 25 kB may take


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails if more is ever allocated than the files here can need."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < KILOBYTES << 10
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[dict, bytes]:
    """The header and the tensors' bytes of a good file."""
    raw = (files.write_folder(tmp_path_factory.mktemp("good")) / SINGLE).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(folder: Path, header: bytes, body: bytes) -> Path:
    """A file of these parts."""
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + body)
    return folder


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught, little_memory():
        Safetensors(folder)
    assert str(folder / SINGLE) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(data=st.data(), dtype=st.sampled_from([name for name in DTYPES if name != "BOOL"]))
def test_what_the_library_wrote_is_read_to_the_bit_by_any_slice(data, dtype, tmp_path_factory):
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
    raw = data.draw(st.binary(min_size=8 * 125, max_size=8 * 125))
    array = np.frombuffer(raw, DTYPES[dtype])[: np.prod(shape, dtype=int)].reshape(shape)
    folder = tmp_path_factory.getbasetemp()
    save_file({"a": np.arange(3.0, dtype=np.float32), "x": array.copy()}, folder / SINGLE)
    source = Safetensors(folder, DTYPES)
    index = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))) for size in shape)
    assert source.dtype("x") == dtype
    assert source.shape("x") == shape
    assert source.nbytes("x") == array.nbytes
    assert source.stored("x", index).tobytes() == array[index].tobytes()
    with np.errstate(invalid="ignore", over="ignore"):
        np.testing.assert_array_equal(source.read("x", index), array[index].astype(np.float32))


def entry(**change):
    """Another entry for one tensor."""
    return lambda header: header[NAME].update(change)


def moved(first: int, last: int):
    """The tensor elsewhere by so many bytes."""

    def change(header):
        begin, end = header[NAME]["data_offsets"]
        header[NAME]["data_offsets"] = [begin + first, end + last]

    return change


FAULTS = {
    "its dtype is none": (entry(dtype="F33"), f"tensor {NAME} has dtype 'F33', expected one of F32, F16"),
    "its dtype is of half bytes": (entry(dtype="F4"), f"tensor {NAME} has dtype 'F4'"),
    "its dtype is another": (entry(dtype="F16"), f"tensor {NAME} has data_offsets .* expected 768 bytes for"),
    "its dtype is missing": (lambda header: header[NAME].pop("dtype"), f"tensor {NAME} has dtype None"),
    "it is no object": (lambda header: header.update({NAME: 7}), f"tensor {NAME} has dtype None"),
    "it is larger than its bytes": (
        entry(shape=[24, 17]),
        f"tensor {NAME} has data_offsets .* expected 1632 bytes",
    ),
    "it is huge": (entry(shape=[2**20, 2**40]), f"tensor {NAME} has data_offsets .* expected 4611686018427387904"),
    "no file has so much": (entry(shape=[2**40, 2**40]), f"tensor {NAME} has shape .* of a file that can be"),
    "of nothing it has as much": (entry(shape=[0, 2**62], data_offsets=[0, 0]), f"tensor {NAME} has shape"),
    "its shape has no end of digits": (entry(shape=[10**4200] * 2), f"tensor {NAME} has shape .*whole numbers"),
    "its shape is negative": (
        entry(shape=[-24, -16]),
        f"tensor {NAME} has shape .* expected up to 8 whole numbers",
    ),
    "its shape is no list": (entry(shape="24"), f"tensor {NAME} has shape '24'"),
    "its shape is endless": (entry(shape=[1] * 100), f"tensor {NAME} has shape"),
    "its place has one number": (entry(data_offsets=[0]), f"tensor {NAME} has data_offsets .* two whole numbers"),
    "its place is not whole": (entry(data_offsets=[0.0, 1536.0]), f"tensor {NAME} has data_offsets"),
    "its place is missing": (entry(data_offsets=None), f"tensor {NAME} has data_offsets None"),
    "it ends behind the file": (moved(10**6, 10**6), f"tensor {NAME} has data_offsets .* inside the 36160"),
    "it begins before the file": (moved(-(10**6), -(10**6)), f"tensor {NAME} has data_offsets"),
    "it lies the wrong way round": (entry(data_offsets=[1536, 0]), f"tensor {NAME} has data_offsets"),
    "it reaches into another": (
        moved(-4, -4),
        "tensor .* begins at byte .*, expected .* where the one before ends",
    ),
    "it is another's bytes": (
        lambda header: header[NAME].update(data_offsets=header[OTHER]["data_offsets"]),
        "tensor .* begins at byte",
    ),
    "it is left out": (lambda header: header.pop(NAME), "tensor .* begins at byte"),
    "its name is no name": (
        lambda header: header.update({"a\nb": header.pop(NAME)}),
        r"'a\\nb' is a key, expected 1 to 255 printable",
    ),
    "its name is endless": (
        lambda header: header.update({"a" * 300: header.pop(NAME)}),
        "header: .*'aaa.* is a key",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_that_is_not_what_the_header_says_is_named(fault, parts, tmp_path):
    header, body = json.loads(json.dumps(parts[0])), parts[1]
    change, message = FAULTS[fault]
    change(header)
    assert_refused(write(tmp_path, json.dumps(header).encode(), body), message)


def test_a_tensor_that_is_listed_twice_is_named(parts, tmp_path):
    header = json.dumps(parts[0])
    assert header.startswith("{")
    twice = f'{{"{NAME}": {json.dumps(parts[0][NAME])}, {header[1:]}'
    assert_refused(
        write(tmp_path, twice.encode(), parts[1]), f"header: cannot be read as JSON: '{NAME}' is there twice"
    )


def test_bytes_that_belong_to_no_tensor_are_refused(parts, tmp_path):
    message = "its last tensor ends at byte .*, but the file has"
    assert_refused(write(tmp_path, json.dumps(parts[0]).encode(), parts[1] + bytes(4)), message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1]", "header: holds a list, expected a JSON object"),
        (b"{'a': 1}", "header: cannot be read as JSON"),
        (b"[" * 20_000, "header: cannot be read as JSON"),
        (b'{"\xff": 1}', "header: cannot be read as JSON"),
        ("{}".encode("utf-16"), "header: cannot be read as JSON: 'utf-8'"),
        (b"", "header length is 0, expected 2 to"),
    ],
)
def test_a_header_that_is_none_is_refused(header, message, tmp_path):
    assert_refused(write(tmp_path, header, bytes(64)), message)


@pytest.mark.parametrize("size", [2**64 - 1, 2**31, 100])
def test_a_header_longer_than_the_file_is_refused_before_anything_is_allocated(size, tmp_path):
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", size) + b"{}" + bytes(40))
    assert_refused(tmp_path, f"header length is {size}, expected 2 to 42")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(data=st.data(), value=JSON)
def test_whatever_a_header_says_of_a_tensor_it_is_read_or_refused_in_a_sentence(
    data, value, parts, tmp_path_factory
):
    header, folder = json.loads(json.dumps(parts[0])), tmp_path_factory.getbasetemp()
    place = data.draw(st.sampled_from([None, "dtype", "shape", "data_offsets", "__metadata__"]))
    target = header[NAME] if place in header[NAME] else header
    target[NAME if place is None else place] = value
    write(folder, json.dumps(header).encode(), parts[1])
    try:
        with little_memory():
            Safetensors(folder)
    except UserError as error:
        assert str(folder / SINGLE) in str(error)
        assert "\n" not in str(error)
