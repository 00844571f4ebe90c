import json
import struct
from types import SimpleNamespace
from typing import Any

import files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

import minillm
from minillm.archs.tensors import HalfSplit, Stack, Tensor, View
from minillm.checkpoint.loader import open_checkpoint
from minillm.errors import UserError

INDEX = "model.safetensors.index.json"


def test_a_folder_without_a_tokenizer_works_on_token_ids(tmp_path):
    lm = minillm.load(files.write_folder(tmp_path / "m"))
    assert lm.tokenizer is None
    out = lm.generate([5, 6, 7], max_tokens=4, temperature=0.0)
    assert out.text == ""
    assert len(out.tokens) <= 4
    with pytest.raises(UserError, match="token ids"):
        lm.generate("text")


def test_shards_are_the_same_model_as_one_file(tmp_path):
    whole, parts = files.write_folder(tmp_path / "whole"), files.write_folder(tmp_path / "parts")
    tensors = files.hf_tensors()
    (parts / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for shard, chosen in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in chosen}, parts / shard)
        weight_map |= dict.fromkeys(chosen, shard)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tokens = np.arange(20)[None]
    assert np.array_equal(minillm.load(whole).logits(tokens), minillm.load(parts).logits(tokens))


@pytest.mark.parametrize("index", ["a.safetensors", "b.safetensors"])
def test_a_tensor_in_another_shard_than_the_index_says_is_refused(index, tmp_path):
    """Two shards may hold one name; which of the two would be read must not depend on the order of files."""
    folder, tensors = files.write_folder(tmp_path / "m"), files.hf_tensors()
    (folder / "model.safetensors").unlink()
    twice, moved = "model.norm.weight", "model.embed_tokens.weight"
    save_file({name: tensors[name] for name in tensors if name != moved}, folder / "a.safetensors")
    save_file({moved: tensors[moved], twice: tensors[twice] + 1}, folder / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {moved: "b.safetensors", twice: index}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    other = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}[index]
    with pytest.raises(UserError, match=f"{other}: holds tensor model.norm.weight, but .* says '{index}'"):
        open_checkpoint(folder)


CONFIGS = {
    "model_type is 'nonsense'": {"model_type": "nonsense"},
    r"model_type is \['llama'\]": {"model_type": ["llama"]},
    "hidden_size is missing": {"hidden_size": None},
    "hidden_size is -4": {"hidden_size": -4},
    "hidden_size is '16'": {"hidden_size": "16"},
    "num_hidden_layers is 1e": {"num_hidden_layers": 1e30},
    "has shape": {"intermediate_size": 2**30},
    "layers.2.*is missing": {"num_hidden_layers": 3},
    "num_hidden_layers is 2147483647, expected at most": {"num_hidden_layers": 2**31 - 1},
    "hidden_act is 'relu'": {"hidden_act": "relu"},
    "attention_bias is True": {"attention_bias": True},
    "rope_scaling: low_freq_factor is missing": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "rope_parameters: factor is missing": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    "rope_scaling: type is 'dynamic'": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "sliding_window = 64 is not supported": {"sliding_window": 64},
    "rms_norm_eps is nan": {"rms_norm_eps": float("nan")},
    "tie_word_embeddings is 1": {"tie_word_embeddings": 1},
    "eos_token_id is 'x'": {"eos_token_id": "x"},
    "lm_head.weight is missing": {"tie_word_embeddings": False},
    "num_key_value_heads is 3, expected a divisor": {"num_key_value_heads": 3},
    "head_dim is 7": {"head_dim": 7},
    "head_dim is 1000000000, expected at most 65536": {"head_dim": 10**9},
    "factor is 1e-320": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1e-320}},
}


@pytest.mark.parametrize("message", CONFIGS)
def test_a_config_that_does_not_fit_is_refused_by_field(message, tmp_path):
    folder = files.write_folder(tmp_path / "m", config=files.CONFIG | CONFIGS[message])
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(folder).shapes()
    assert str(folder) in str(caught.value)


def change_tensors(tmp_path, change):
    tensors = files.hf_tensors()
    change(tensors)
    return files.write_folder(tmp_path / "m", tensors=tensors)


def moved_rows(tensors):
    """As many query, key and value rows as before, but not as many of each."""
    q, k = (tensors[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.concatenate([q, k[:6]])
    tensors["model.layers.0.self_attn.k_proj.weight"] = k[6:]


TENSORS = {
    "q_proj.weight has shape": moved_rows,
    "model.norm.weight is missing": lambda t: t.pop("model.norm.weight"),
    "extra.weight is not part of": lambda t: t.update({"extra.weight": np.zeros(3, np.float32)}),
    "has shape": lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}),
    "has dtype F64": lambda t: t.update({"model.norm.weight": np.zeros(16)}),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_do_not_fit_are_named(message, tmp_path):
    folder = change_tensors(tmp_path, TENSORS[message])
    with pytest.raises(UserError, match=message):
        open_checkpoint(folder).shapes()


def break_file(name: str, content: bytes | None):
    def broken(folder):
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return broken


# Two that the library reads: one that it fails with later, and one that would make it fill the memory.
NO_SUCH_TOKEN = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def processed(step: dict) -> bytes:
    return described(post_processor={**step, "pair": [], "special_tokens": {}})


def normalised(steps: list[dict]) -> bytes:
    return described(normalizer={"type": "Sequence", "normalizers": steps})


def described(**parts: Any) -> bytes:
    """The content of a tokenizer.json."""
    return json.dumps(json.loads(Tokenizer(models.BPE({"a": 0}, [])).to_str()) | parts).encode()


FAULTS = {
    "has no config.json": break_file("config.json", None),
    "cannot be read as JSON": break_file("config.json", b"{"),
    "holds a list": break_file("config.json", b"[]"),
    r"config.json: .*'a\\nb' is a key": break_file("config.json", b'{"a\\nb": 16}'),
    "'hidden_size' is there twice": break_file("config.json", b'{"hidden_size": 16, "hidden_size": 16}'),
    "cannot be read as JSON: maximum": break_file("config.json", b"[" * 100_000),
    "neither model.safetensors": break_file("model.safetensors", None),
    "header length is 4611686018427387904": break_file("model.safetensors", struct.pack("<Q", 2**62) + bytes(99)),
    r"model_type is (a list|\[\[)": break_file("config.json", b'{"model_type": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "tokenizers library": break_file("tokenizer.json", b"{}"),
    "no entry found for key": break_file("tokenizer.json", processed(NO_SUCH_TOKEN)),
    "a text over 1000 times as long": break_file("tokenizer.json", normalised([DOUBLED] * 10)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_broken_files_are_refused_by_name(message, tmp_path):
    folder = files.write_folder(tmp_path / "m")
    FAULTS[message](folder)
    with pytest.raises(UserError, match=message):
        checkpoint = open_checkpoint(folder)
        checkpoint.shapes()
        checkpoint.tokenizer()


LISTED = {
    r"shard '../model.safetensors' is a path": {"a": "../model.safetensors"},
    r"shard '/etc/x.safetensors' is a path": {"a": "/etc/x.safetensors"},
    r"shard 'm/../model.safetensors' is a path": {"a": "m/../model.safetensors"},
    r"shard '' is no safetensors file": {"a": ""},
    r"shard '..' is no safetensors file": {"a": ".."},
    r"shard 'model.safetensors.index.json' is no safetensors file": {"a": INDEX},
    r"shard 'gone.safetensors' is missing": {"a": "gone.safetensors"},
    r"shard 'xxx.*is missing": {"a": "x" * 300 + ".safetensors"},
    r"tensor 'a' is not in shard 'model.safetensors'": {"a": "model.safetensors"},
    r"weight_map is missing or not a map": {"a": ["model.safetensors"]},
}


@pytest.mark.parametrize("message", LISTED)
def test_an_index_leads_nowhere_but_to_files_beside_it(message, tmp_path):
    folder = files.write_folder(tmp_path / "m")
    (folder / INDEX).write_text(json.dumps({"weight_map": LISTED[message]}))
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder / INDEX) in str(caught.value)


def test_an_index_that_takes_itself_for_a_shard_is_refused(tmp_path):
    folder = files.write_folder(tmp_path / "m")
    index = json.dumps({"weight_map": {"a": "model.safetensors"}})
    for name in (INDEX, "model.safetensors"):
        (folder / name).write_text(index)
    with pytest.raises(UserError, match=r"m/model\.safetensors: header length is"):
        open_checkpoint(folder)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path):
    folder = files.write_folder(tmp_path / "m")
    (folder / INDEX).write_text('{"weight_map": {"a": "model.safetensors", "a": "model.safetensors"}}')
    with pytest.raises(UserError, match=r"index\.json: cannot be read as JSON: 'a' is there twice"):
        open_checkpoint(folder)


def test_shards_may_be_links_as_in_the_cache_of_hugging_face(tmp_path):
    folder = files.write_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    assert "model.norm.weight" in open_checkpoint(folder).source.names()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "epoch=3.ckpt"])
def test_pickles_are_never_opened_and_how_to_convert_them_is_said(name, tmp_path):
    folder = files.write_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    for path in (folder, folder / name):
        with pytest.raises(UserError, match=rf"{name} is a pickle, .* python -c .*save_pretrained.*m-safetensors"):
            open_checkpoint(path)


def test_one_file_of_a_folder_is_refused_by_what_was_expected(tmp_path):
    folder = files.write_folder(tmp_path / "m")
    with pytest.raises(UserError, match=r"m/model\.safetensors: is one file of a checkpoint, expected a \.gguf"):
        open_checkpoint(folder / "model.safetensors")


@given(data=st.data())
@settings(max_examples=60)
def test_a_safetensors_file_cut_or_flipped_never_crashes_the_reader(tmp_path_factory, data):
    folder = files.write_folder(tmp_path_factory.getbasetemp() / "fuzzed")
    raw = (folder / "model.safetensors").read_bytes()
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        place = data.draw(st.integers(0, 3000))
        raw = raw[:place] + data.draw(st.binary(min_size=1, max_size=8)) + raw[place + 8 :]
    (folder / "model.safetensors").write_bytes(raw)
    try:
        open_checkpoint(folder).shapes()
    except UserError as error:
        assert "\n" not in str(error)


class Matrix:
    def __init__(self, array):
        self.array = array

    def names(self):
        return ["q", "v"]

    def shape(self, name):
        return self.array.shape

    def read(self, name, index=()):
        return self.array[index]


@given(low=st.integers(0, 24), high=st.integers(0, 24), columns=st.integers(1, 5))
def test_a_slice_of_a_described_tensor_is_the_slice_of_the_whole(low, high, columns):
    array = np.arange(12 * 5).reshape(12, 5)
    sizes: Any = SimpleNamespace(layers=((SimpleNamespace(h=3),),))
    view = View(Matrix(array), sizes, layer=0)
    entry = Stack((HalfSplit(Tensor("q"), heads="h"), Tensor("v")))
    index = (slice(low, max(low, high)), slice(0, columns))
    expected = entry.read(view)[index]
    if expected.size:
        assert np.array_equal(entry.read(view, index), expected)
