"""Reading GGUF blocks: as the definition, the gguf package and ggml itself read them, bit for bit."""

import gguf
import jax
import numpy as np
import pytest
from agreement import AS_USERS
from hypothesis import given
from hypothesis import strategies as st

from minillm import ops
from minillm.ops.formats.gguf.bits import pack, unpack

TYPES = [pytest.param(number, form, id=form.name) for number, form in ops.GGUF_TYPES.items()]
every_type = pytest.mark.parametrize(("number", "form"), TYPES)
MINIMA = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2, "Q2_K": 82}  # bytes at which a second float16 starts
SCALES = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208, "TQ1_0": 52, "TQ2_0": 64}  # where the first does, if not at 0


@pytest.fixture(autouse=True)
def _overflow_is_data():
    """Infinite and NaN scales are bit patterns like others here."""
    with np.errstate(all="ignore"):
        yield


def random_blocks(form: ops.GGUFType, step: int = 7) -> np.ndarray:
    """uint8 [65536 / step + 3, size]: scales and minima run through float16, in steps, the rest is random."""
    rng = np.random.default_rng(0)
    every = np.append(np.arange(0, 1 << 16, step), [0x8000, 0x7C00, 0xFC00]).astype("<u2")  # -0, infinities
    blocks = rng.integers(0, 256, (len(every), form.size), np.uint8)
    at = SCALES.get(form.name, 0)
    blocks[:, at : at + 2] = every[:, None].view(np.uint8)
    if form.name in MINIMA:
        at = MINIMA[form.name]
        blocks[:, at : at + 2] = rng.permutation(every)[:, None].view(np.uint8)
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
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_any_bytes_decode_as_the_gguf_package_does(number, form, step):
    blocks = random_blocks(form, step)
    theirs = gguf.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType(number))
    assert_same_bits(form.decode(blocks), theirs.reshape(-1, form.values))


@every_type
def test_jax_decodes_to_the_same_bits_where_numbers_are_normal(number, form):
    blocks = random_blocks(form)
    x = form.decode(blocks)
    compiled = jax.jit(ops.decode_gguf_blocks, static_argnames="type", compiler_options=AS_USERS)
    y = np.array(compiled(blocks, type=form.name))
    tiny = np.abs(x) < np.finfo(np.float32).tiny
    x, y = np.where(tiny, 0, x), np.where(tiny, 0, y)  # XLA may take subnormals for zero
    assert_same_bits(x, y)


def test_jax_refuses_what_is_no_block():
    with pytest.raises(
        ValueError, match=r"data is uint8 of shape \[19\], expected uint8, rows of a multiple of 18 bytes"
    ):
        ops.decode_gguf_blocks(jax.numpy.zeros(19, "uint8"), "Q4_0")
    with pytest.raises(ValueError, match="type is 'Q9_9', expected one of F32"):
        ops.decode_gguf_blocks(jax.numpy.zeros(18, "uint8"), "Q9_9")


@pytest.mark.oracle
@pytest.mark.parametrize(("number", "form"), [case for case in TYPES if case.id not in ("F32", "F16", "BF16")])
def test_any_bytes_decode_as_ggml_does(number, form):
    import libgguf  # pyright: ignore[reportMissingImports]

    blocks = random_blocks(form, step=1)
    assert_same_bits(form.decode(blocks), libgguf.dequantize_rows(blocks, number))


@every_type
def test_a_block_decodes_as_its_definition_rounded_once(number, form):
    """No product has more bits than float32; the one rounding is that of the sum with a minimum."""
    blocks = random_blocks(form)[:: 150 if form.values > 64 else 15]
    exact = [ops.decode_gguf_block_ref(form.name, block.tobytes()) for block in blocks]
    assert_same_bits(form.decode(blocks), np.array(exact, np.float64).astype(np.float32))


@every_type
def test_decoding_reads_mapped_memory_and_leaves_it_alone(number, form):
    blocks = random_blocks(form)[:8]
    mapped = np.frombuffer(blocks.tobytes(), np.uint8).reshape(blocks.shape)  # read-only, as a mapped file is
    assert_same_bits(form.decode(mapped), form.decode(blocks))
    assert mapped.tobytes() == blocks.tobytes()


@every_type
def test_a_tensor_decodes_as_its_blocks_do_in_whatever_memory_order(number, form):
    blocks = random_blocks(form)[4000:4024]
    x = ops.decode_gguf(np.asfortranarray(blocks.reshape(2, 4, -1)), form.name)
    assert_same_bits(x, form.decode(blocks).reshape(2, 4, -1))


@pytest.mark.parametrize("bits", [1, 2, 4])
@given(seed=st.integers(0, 2**32 - 1), run=st.sampled_from([1, 4, 16]), runs=st.integers(1, 3))
def test_packing_is_the_inverse_of_unpacking(bits, seed, run, runs):
    packed = np.random.default_rng(seed).integers(0, 256, (3, run * runs), np.uint8)
    assert np.array_equal(pack(unpack(packed, run, bits), run, bits), packed)


def test_runs_hold_low_bits_first():
    block = np.array([[0x21, 0x43]], np.uint8)
    assert unpack(block, 2, 4).tolist() == [[1, 3, 2, 4]]
    assert unpack(block, 1, 4).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.decode_gguf_block_ref("Q9_9", b""), "decode_gguf_block_ref: unknown type 'Q9_9'"),
        (lambda: ops.decode_gguf(np.zeros(18, np.uint8), "Q9_9"), "type is 'Q9_9', expected one of F32, F16, Q4_0"),
        (lambda: ops.decode_gguf(np.zeros(18), "Q4_0"), "decode_gguf: data is float64, expected uint8"),
        (lambda: ops.decode_gguf(np.zeros((2, 19), np.uint8), "Q4_0"), r"data has shape \[2, 19\], .* 18 bytes"),
        (lambda: ops.decode_gguf(np.zeros((0, 18), np.uint8), "Q4_0"), r"data has shape \[0, 18\]"),
        (
            lambda: ops.decode_gguf(np.array(3, np.uint8), "F32"),
            r"data has shape \[\], expected rows of",
        ),
    ],
)
def test_bytes_that_are_no_blocks_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
