import resource
import struct

import files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm.checkpoint.gguf import GGUF
from minillm.checkpoint.loader import open_checkpoint
from minillm.errors import UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return files.write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def raw(good):
    return good.read_bytes()


def assert_loads_or_is_refused(path) -> None:
    """Load everything that generation would: it succeeds, or says in one line that names the file why it does not.

    Any other error is a bug, and fails the test that calls this.
    """
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.shapes()
        checkpoint.tokenizer()
    except UserError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)


def test_a_gguf_file_and_a_folder_of_the_same_weights_agree_to_the_bit(good, tmp_path):
    folder = files.write_folder(tmp_path / "hf")
    tokens = np.arange(64)[None] * 3 % 272
    assert np.array_equal(minillm.load(good).logits(tokens), minillm.load(folder).logits(tokens))


def test_any_slice_equals_the_same_slice_of_the_whole(smollm2):
    source = GGUF(minillm.lm.find_model("smollm2-135m"))
    for name in ("blk.3.attn_q.weight", "token_embd.weight", "blk.0.attn_norm.weight"):
        whole = source.read(name)
        for index in [(slice(3, 9),), (slice(0, 1), slice(32, 70)), (slice(5, 5),)]:
            index = index[: whole.ndim]
            assert np.array_equal(source.read(name, index), whole[index])


@given(data=st.data())
@settings(max_examples=60)
def test_a_file_cut_anywhere_is_refused_in_one_sentence(raw, tmp_path_factory, data):
    cut = data.draw(st.integers(0, len(raw) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(raw[:cut])
    with pytest.raises(UserError, match=r"cut\.gguf"):
        open_checkpoint(path).shapes()


@given(place=st.floats(0, 1), byte=st.integers(0, 255), span=st.integers(1, 8))
@settings(max_examples=250)
def test_flipped_bytes_never_crash_the_reader(raw, tmp_path_factory, place, byte, span):
    start = int(place * 12_000)  # the header, the metadata and the tensor table
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(raw[:start] + bytes([byte]) * span + raw[start + span :])
    assert_loads_or_is_refused(path)


HUGE = 2**63 - 1


@pytest.mark.parametrize("place", [8, 16], ids=["tensor count", "metadata count"])
def test_absurd_counts_are_refused_before_anything_is_allocated(raw, tmp_path, place):
    path = tmp_path / "huge.gguf"
    path.write_bytes(raw[:place] + struct.pack("<Q", HUGE) + raw[place + 8 :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="room for"):
        open_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def header(*entries: bytes, tensors: bytes = b"", n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(entries)) + b"".join(entries) + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCH = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def tensor(name="t", dims=(4, 4), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


BROKEN = {
    "magic": (b"GGML" + bytes(100), "starts with"),
    "version": (b"GGUF" + struct.pack("<I", 99) + bytes(100), "version 99"),
    "empty": (b"", "cannot be read"),
    "array length": (header(text("a") + struct.pack("<IIQ", 9, 6, HUGE)), "room for"),
    "string length": (header(struct.pack("<Q", HUGE)), "room for"),
    "nested array": (header(text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(64)), "array of type 9"),
    "value type": (header(text("a") + struct.pack("<I", 77) + bytes(64)), "value type 77"),
    "key twice": (header(ARCH, ARCH), "twice"),
    "not UTF-8": (header(struct.pack("<Q", 2) + b"\xff\xfe" + bytes(16)), "UTF-8"),
    "key over lines": (header(text("two\nlines") + struct.pack("<IB", 7, 1)), r"'two\\nlines' .* printable"),
    "endless key": (header(text("k" * 300) + struct.pack("<IB", 7, 1)), "300 characters"),
    "nameless tensor": (header(ARCH, tensors=tensor(name=""), n_tensors=1) + bytes(999), "0 characters"),
    "tensor type": (header(ARCH, tensors=tensor(kind=42), n_tensors=1) + bytes(999), "type 42"),
    "rank": (header(ARCH, tensors=tensor(dims=(1,) * 9), n_tensors=1) + bytes(999), "9 dimensions"),
    "dimensions": (header(ARCH, tensors=tensor(dims=(HUGE, HUGE)), n_tensors=1) + bytes(999), "ends at byte"),
    "zero dimension": (header(ARCH, tensors=tensor(dims=(0, 4)), n_tensors=1) + bytes(999), "shape"),
    "row not in blocks": (
        header(ARCH, tensors=tensor(dims=(33, 2), kind=8), n_tensors=1) + bytes(999),
        "multiples of 32",
    ),
    "offset": (header(ARCH, tensors=tensor(offset=HUGE), n_tensors=1) + bytes(999), "ends at byte"),
    "tensor twice": (header(ARCH, tensors=tensor() * 2, n_tensors=2) + bytes(999), "twice"),
    "architecture": (
        header(text("general.architecture") + struct.pack("<I", 8) + text("../evil")),
        "not supported",
    ),
    "no architecture": (header(), "general.architecture is None"),
    "alignment": (header(ARCH, text("general.alignment") + struct.pack("<II", 4, 0)), "multiple of 8"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_by_name(fault, tmp_path):
    content, message = BROKEN[fault]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def rewritten(tmp_path, change) -> "minillm.checkpoint.loader.Checkpoint":
    """The good file's parts after `change(metadata, tensors)`, without going through bytes."""
    source = GGUF(files.write_gguf(tmp_path / "changed.gguf"))
    change(source.metadata, source.tensors)
    return source


CHANGES = {
    "blk.1.ffn_up.weight is missing": lambda m, t: t.pop("blk.1.ffn_up.weight"),
    "blk.9.odd is not part of": lambda m, t: t.update({"blk.9.odd": t["output_norm.weight"]}),
    "token_embd.weight has shape": lambda m, t: t.update({"token_embd.weight": t["blk.0.attn_q.weight"]}),
    "embedding_length is missing": lambda m, t: m.pop("llama.embedding_length"),
    "block_count is 0": lambda m, t: m.update({"llama.block_count": 0}),
    "head_count is 'four'": lambda m, t: m.update({"llama.attention.head_count": "four"}),
    "rope.scaling.type is 'dynamic'": lambda m, t: m.update({"llama.rope.scaling.type": "dynamic"}),
    "expert_used_count is missing": lambda m, t: m.update({"llama.expert_count": 8}),
    "tokenizer.ggml.pre is 'qwen'": lambda m, t: m.update({"tokenizer.ggml.pre": "qwen"}),
    r"tokenizer.ggml.pre is \['smollm'\]": lambda m, t: m.update({"tokenizer.ggml.pre": ["smollm"]}),
    "vocab_size is missing": lambda m, t: m.update({"tokenizer.ggml.tokens": 7}),
    "tokenizer.ggml.model is 'bert'": lambda m, t: m.update({"tokenizer.ggml.model": "bert"}),
    "lists the same token twice": lambda m, t: m["tokenizer.ggml.tokens"].__setitem__(
        5, m["tokenizer.ggml.tokens"][6]
    ),
    "ffn_up.weight has shape": lambda m, t: t.update({"blk.0.ffn_up.weight": t["token_embd.weight"]}),
    "do not fit the tokens": lambda m, t: m.update({"tokenizer.ggml.merges": ["zzz yyy"]}),
    "do not fit the tokens: .* Token": lambda m, t: m.update({"tokenizer.ggml.merges": ["a \n" + "b" * 999]}),
    "tokenizer.ggml.pre is 'xxx": lambda m, t: m.update({"tokenizer.ggml.pre": "x" * 999}),
    "general.architecture is 'falcon-h1', not": lambda m, t: m.update({"general.architecture": "falcon-h1"}),
    "eos_token_id is 9999": lambda m, t: m.update({"tokenizer.ggml.eos_token_id": 9999}),
    "one type for each": lambda m, t: m.update({"tokenizer.ggml.token_type": [1]}),
    "not a list of strings": lambda m, t: m.update({"tokenizer.ggml.merges": 7}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_metadata_and_tensors_that_do_not_fit_are_named(message, tmp_path, monkeypatch):
    source = rewritten(tmp_path, CHANGES[message])
    monkeypatch.setattr("minillm.checkpoint.loader.GGUF", lambda path: source)
    with pytest.raises(UserError, match=message) as caught:
        checkpoint = open_checkpoint(tmp_path / "changed.gguf")
        checkpoint.shapes()
        minillm.checkpoint.vocabulary.tokenizer_from_gguf(source.metadata, source.where)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_bos_token_with_an_odd_name_is_put_in_front_all_the_same(tmp_path):
    source = GGUF(files.write_gguf(tmp_path / "bos.gguf"))
    source.metadata["tokenizer.ggml.tokens"][0] = "$B:1 "
    source.metadata["tokenizer.ggml.add_bos_token"] = True
    tokenizer = minillm.checkpoint.vocabulary.tokenizer_from_gguf(source.metadata, source.where)
    assert tokenizer.encode("hi")[0] == 0
    assert 0 not in tokenizer.encode("hi", special=False)
