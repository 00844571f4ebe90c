import gguf
import numpy as np
import pytest

from minillm import ops

TYPES = [pytest.param(number, form, id=form.name) for number, form in ops.GGUF_TYPES.items()]
every_type = pytest.mark.parametrize(("number", "form"), TYPES)


@pytest.fixture(autouse=True)
def _overflow_is_data():
    """Infinite and NaN scales are bit patterns like others here."""
    with np.errstate(all="ignore"):
        yield


def random_blocks(form: ops.GGUFType) -> np.ndarray:
    """uint8 [65536, size]: the first two bytes run through all of float16, the rest is random."""
    blocks = np.random.default_rng(0).integers(0, 256, (65536, form.size), np.uint8)
    blocks[:, :2] = np.arange(65536, dtype="<u2")[:, None].view(np.uint8)
    return blocks


def assert_same_bits(x: np.ndarray, y: np.ndarray) -> None:
    """Equal float32 arrays: -0 is not 0, and NaN is NaN whatever its payload."""
    assert x.dtype == y.dtype == np.float32
    assert x.shape == y.shape
    same = (x.view(np.uint32) == y.view(np.uint32)) | (np.isnan(x) & np.isnan(y))
    assert same.all(), f"{np.sum(~same)} of {same.size} differ, first {x[~same][0]!r} and {y[~same][0]!r}"


@every_type
def test_the_table_agrees_with_the_gguf_package(number, form):
    kind = gguf.GGMLQuantizationType(number)
    assert (form.name, (form.values, form.size)) == (kind.name, gguf.GGML_QUANT_SIZES[kind])


@every_type
def test_any_bytes_decode_as_the_gguf_package_does(number, form):
    blocks = random_blocks(form)
    theirs = gguf.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType(number))
    assert_same_bits(form.decode(blocks), theirs.reshape(-1, form.values))


@every_type
def test_quantised_values_decode_as_the_gguf_package_does(number, form):
    kind = gguf.GGMLQuantizationType(number)
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    stored = gguf.quantize(values, kind)
    decoded = form.decode(stored.view(np.uint8).reshape(-1, form.size)).reshape(64, 32)
    assert_same_bits(decoded, gguf.dequantize(stored, kind))
    # 4 bits for the range of 32 normal values leave steps of about 4/15: an order mixed up would show.
    assert np.abs(decoded - values).max() < 0.25


@every_type
def test_a_block_decodes_as_its_definition_rounded_once(number, form):
    """d q has at most 11 + 8 bits, so float32 holds it exactly; the one rounding is that of the sum with m."""
    blocks = random_blocks(form)[::31]
    exact = [ops.decode_gguf_block_ref(form.name, block.tobytes()) for block in blocks]
    assert_same_bits(form.decode(blocks), np.array(exact, np.float64).astype(np.float32))


@every_type
def test_decoding_reads_mapped_memory_and_leaves_it_alone(number, form):
    blocks = random_blocks(form)[:8]
    mapped = np.frombuffer(blocks.tobytes(), np.uint8).reshape(blocks.shape)  # read-only, as a mapped file is
    assert_same_bits(form.decode(mapped), form.decode(blocks))
    assert mapped.tobytes() == blocks.tobytes()


def test_an_unknown_type_is_named():
    with pytest.raises(ValueError, match="decode_gguf_block_ref: unknown type 'Q9_9'"):
        ops.decode_gguf_block_ref("Q9_9", b"")
