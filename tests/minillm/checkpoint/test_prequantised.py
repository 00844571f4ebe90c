"""Folders that others quantised give the numbers their formats stand for, in few bits where that is possible."""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import others
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm.checkpoint.folder_writer import write_folder
from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.prequantised import Prequantised, dense, layout_of, widened
from minillm.checkpoint.safetensors import WORDS, Safetensors
from minillm.cli import main
from minillm.errors import UserError
from minillm.quant import by_place, is_weight
from minillm.quant.coded import Coded

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
MOE = {"num_local_experts": 3, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
GROUPS = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1}
CONFIGS = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "mixtral": LLAMA | MOE | {"model_type": "mixtral"},
    "phi3": LLAMA | {"model_type": "phi3"},
    "gpt_oss": LLAMA | MOE | {"model_type": "gpt_oss", "rope_parameters": {"rope_type": "default"}, "head_dim": 16},
    "deepseek_v3": LLAMA
    | LATENT
    | GROUPS
    | {"model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 32}
    | {"first_k_dense_replace": 0, "routed_scaling_factor": 2.0, "norm_topk_prob": True},
    "gpt2": {"model_type": "gpt2", "vocab_size": 61, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 256}
    | {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"},
}
MATRICES = "_proj.weight .w1. .w2. .w3."
TOKENS = np.random.default_rng(0).integers(0, 61, (1, 40))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """plain(family): a folder of random weights."""

    @functools.cache
    def folder(family):
        path = tmp_path_factory.mktemp("plain") / family
        write_folder(path, minillm.init(CONFIGS[family], seed=1).model, CONFIGS[family], dtype="F32")
        return path

    return folder


def same_numbers(few, plain) -> dict[str, str]:
    """Check that two models hold the same numbers: the class of each weight of the first, by place."""
    found, expected = by_place(few.model)[0], by_place(plain.model)[0]
    for (place, one), (there, other) in zip(found, expected, strict=True):
        assert place == there
        one, other = (dense(leaf) if isinstance(leaf, Coded) else leaf for leaf in (one, other))
        other = other.dense() if is_weight(other) else other
        assert np.array_equal(one.dense() if is_weight(one) else one, other), place
    assert jax.tree.map(described, few.shapes) == jax.tree.map(described, few.model)
    return {place: type(leaf).__name__ for place, leaf in found if is_weight(leaf)}


def tensors_of(folder) -> dict[str, np.ndarray]:
    """Those of a folder; the library for them reads none of 8-bit floats."""
    file = Safetensors(folder, WORDS)
    return {name: file.stored(name) for name in file.names()}


def described(leaf):
    return leaf.shape, leaf.dtype


def gpt_oss(plain, folder):
    """Its experts in MXFP4, and the same in float32."""
    values, tensors = json.loads((plain / "config.json").read_text()), tensors_of(plain)
    few, rng = dict(tensors), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        e, columns, rows = few.pop(name).shape
        pieces, tensors[name] = others.mxfp4(rng, e, rows, columns)
        few |= {name + end: piece for end, piece in pieces.items()}
    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    return (
        others.save(folder / "few", values | {"quantization_config": said}, few),
        others.save(folder / "plain", values, tensors),
    )


def written(plain, folder, format, chosen=MATRICES):
    """A folder in a format, and its meaning."""
    if format == "mxfp4":
        return gpt_oss(plain, folder)
    assert others.quantise(plain, folder, others.FORMATS[format], chosen=chosen)
    return folder / "few", folder / "plain"


@pytest.mark.parametrize("format", others.FORMATS)
def test_every_format_gives_the_numbers_it_stands_for(format, plain, tmp_path):
    few, meant = written(plain("llama"), tmp_path, format)
    classes = same_numbers(minillm.load(few), minillm.load(meant))
    assert classes == {"embed": "Dense"} | dict.fromkeys(
        ("blocks[0].qkv", "blocks[0].out", "blocks[1].up", "blocks[1].down"), others.FORMATS[format].kept
    )


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(
    ("family", "format"),
    [
        ("llama", "gptq 4"),
        ("mixtral", "awq"),
        ("phi3", "ct int4 asymmetric"),
        ("gpt_oss", "mxfp4"),
        pytest.param("deepseek_v3", "fp8 tiles", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_dequantised_weights(family, format, plain, tmp_path):
    few, meant = (minillm.load(folder) for folder in written(plain(family), tmp_path, format))
    assert "Coded" in same_numbers(few, meant).values()
    found, expected = few.logits(TOKENS), meant.logits(TOKENS)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("format", others.FORMATS)
@pytest.mark.parametrize("family", ["mixtral", "phi3", "qwen2", "deepseek_v3"])
def test_every_family_reads_every_format(family, format, plain, tmp_path):
    few, meant = written(plain(family), tmp_path, format)
    assert others.FORMATS[format].kept in same_numbers(minillm.load(few), minillm.load(meant)).values()


def opened(folder) -> Prequantised:
    values = json.loads((folder / "config.json").read_text())
    layout = layout_of(values, "config.json")
    assert layout is not None
    return Prequantised(Safetensors(folder, WORDS), layout)


@pytest.mark.parametrize("format", ["gptq 4", "gptq act-order", "awq", "fp8 tiles", "ct int4 asymmetric", "mxfp4"])
def test_a_slice_of_a_tensor_is_the_slice_of_the_whole(format, plain, tmp_path):
    few, meant = written(plain("gpt_oss" if format == "mxfp4" else "llama"), tmp_path, format)
    source, truth = opened(few), Safetensors(meant)
    name = next(name for name in source.matrices if "up_proj" in name)
    assert source.shape(name) == truth.shape(name)
    rows = st.sampled_from([(0, 32), (3, 35), (21, 53), (32, 64), (5, 5)])  # few lengths: each is compiled

    @given(rows=rows, columns=st.tuples(st.integers(0, 63), st.integers(1, 64)), expert=st.integers(0, 2))
    @settings(max_examples=12)
    def check(rows, columns, expert):
        some, others = slice(*rows), slice(columns[0], max(columns))
        index = (slice(expert, expert + 1), others, some) if format == "mxfp4" else (some, others)
        assert np.array_equal(source.read(name, index), truth.read(name, index))

    check()


def test_matrices_that_cannot_stay_in_few_bits_are_named_with_the_reason(plain, tmp_path):
    def reasons(format, chosen, folder):
        few, meant = written(plain("llama"), folder, format, chosen)
        same_numbers(minillm.load(few), minillm.load(meant))
        return widened(open_checkpoint(few))

    attention = "model.layers.0.self_attn"
    assert reasons("awq", "q_proj k_proj o_proj up_proj gate_proj down_proj", tmp_path / "a") == {
        "it is put together from several in different formats": [f"{attention}.{x}_proj.weight" for x in "qk"]
    }
    scattered = reasons("gptq act-order", MATRICES, tmp_path / "b")
    assert list(scattered) == ["its columns have scales in no order (act-order)"]
    assert len(*scattered.values()) == 7
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "b" / "few")]).output
    assert "in float32       7 quantised tensors, such as " in shown
    assert reasons("fp8 tiles", MATRICES, tmp_path / "c") == {}


def test_fp8_without_scales_is_a_type_like_any_other(plain, tmp_path):
    values = json.loads((plain("llama") / "config.json").read_text())
    tensors = tensors_of(plain("llama"))
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        short = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        few = others.save(tmp_path / dtype.__name__ / "few", values, short)
        long = {name: tensor.astype(np.float32) for name, tensor in short.items()}
        same_numbers(minillm.load(few), minillm.load(others.save(tmp_path / dtype.__name__ / "long", values, long)))


def changed(folder, change) -> None:
    """Change the tensors of a folder and what its config says of them."""
    values, tensors = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    change(values["quantization_config"], tensors)
    others.save(folder, values, tensors)


def test_biases_of_zeros_that_gptq_tools_add_are_passed_over(plain, tmp_path):
    few, meant = written(plain("llama"), tmp_path, "gptq 4")
    bias = "model.layers.0.mlp.up_proj.bias"
    changed(few, lambda said, tensors: tensors.update({bias: np.zeros(96, np.float16)}))
    same_numbers(minillm.load(few), minillm.load(meant))
    changed(few, lambda said, tensors: tensors.update({bias: np.eye(1, 96, dtype=np.float16)[0]}))
    with pytest.raises(UserError, match=r"up_proj\.bias is not part of the llama architecture"):
        open_checkpoint(few).shapes()


def test_matrices_that_a_family_keeps_the_other_way_round_are_refused(plain, tmp_path):
    few, _ = written(plain("gpt2"), tmp_path, "gptq 4", chosen="attn.c_proj.weight")
    with pytest.raises(UserError, match=r"c_proj\.weight is in GPTQ4, which is not supported for gpt2"):
        open_checkpoint(few).shapes()


def said(**settings):
    return lambda config, tensors: config.update(settings)


def scheme(**settings):
    return lambda config, tensors: config["config_groups"]["group_0"]["weights"].update(settings)


def tensor(end, change):
    """Change layer 0's tensor of that ending; None for what change gives drops it."""

    def apply(config, tensors):
        name = next(name for name in tensors if name.endswith(end))
        new = change(tensors.pop(name).copy())
        tensors.update({} if new is None else {name: new})

    return apply


def filled(value):
    def fill(array):
        array.flat[-1] = value
        return array

    return fill


DROP = lambda array: None  # noqa: E731
HOSTILE = [
    (
        "gptq 4",
        said(quant_method="bitsandbytes"),
        "quant_method is 'bitsandbytes', which is not supported; expected 'awq'",
    ),
    ("gptq 4", said(quant_method=["gptq"]), "quantization_config: quant_method is"),
    ("gptq 4", said(bits=3), "quantization_config: bits is 3"),
    ("gptq 4", said(bits=8), "is .* of .*, expected"),
    ("gptq 4", said(group_size=0), "group_size is 0, expected a whole number above 0, or -1"),
    ("gptq 4", said(group_size=8), r"scales is \[6, 64\] of F16, expected \[12, 64\] of"),
    ("gptq 4", said(rotation="hadamard"), "rotation = 'hadamard' is not supported"),
    (
        "gptq 4",
        said(dynamic={"+:.*": {"bits": 8}}),
        "dynamic is .*, expected patterns of modules to leave out alone",
    ),
    ("gptq 4", said(checkpoint_format="marlin"), "checkpoint_format is 'marlin'"),
    ("gptq 4", said(pack_dtype="int64"), "pack_dtype is 'int64'"),
    ("gptq 4", tensor("o_proj.scales", DROP), "tensor model.layers.0.self_attn.o_proj.scales is missing"),
    ("gptq 4", tensor("o_proj.qzeros", DROP), "o_proj.qzeros is missing"),
    ("gptq 4", tensor("o_proj.qweight", DROP), "o_proj.weight is missing"),
    ("gptq 4", tensor("o_proj.qweight", lambda a: a[:-1]), r"o_proj.g_idx is \[64\] of I32, expected \[56\]"),
    ("gptq 4", tensor("o_proj.qweight", lambda a: a[0]), "o_proj.qweight has shape .*, expected that of a matrix"),
    ("gptq 4", tensor("o_proj.qweight", lambda a: a[:0]), "o_proj.qweight has shape .*, expected that of a matrix"),
    ("gptq 4", tensor("o_proj.qweight", lambda a: a.astype(np.int64)), "of I64, expected .* of I32"),
    ("gptq 4", tensor("o_proj.g_idx", filled(4)), "o_proj.g_idx holds 4, expected 0 to 3"),
    ("gptq 4", tensor("o_proj.g_idx", filled(-1)), "o_proj.g_idx holds -1, expected 0 to 3"),
    ("gptq 4", tensor("o_proj.scales", filled(np.nan)), "o_proj.scales holds NaN or infinity"),
    ("awq", said(version="gemv"), "version is 'gemv'"),
    ("awq", said(zero_point=False), "zero_point is False"),
    ("awq", tensor("o_proj.qzeros", lambda a: a[:, :-1]), "o_proj.qzeros is"),
    ("fp8 tiles", said(fmt="e5m2"), "fmt is 'e5m2'"),
    ("fp8 tiles", said(weight_block_size=[16]), "weight_block_size is .16., expected a list of 2"),
    ("fp8 tiles", said(weight_block_size=[16, 0.5]), "weight_block_size is .*, expected a list of 2 whole numbers"),
    ("fp8 tiles", said(weight_block_size=[16, 32]), r"scale_inv is \[4, 6\] of F32, expected \[4, 3\] of"),
    ("fp8 tiles", tensor("o_proj.weight_scale_inv", DROP), "o_proj.weight_scale_inv is missing"),
    ("fp8 tiles", tensor("o_proj.weight_scale_inv", filled(np.inf)), "holds NaN or infinity, expected scales"),
    (
        "fp8 tiles",
        tensor("norm.weight", lambda a: a.astype(others.E4M3)),
        "norm.weight has shape .*expected that of a m",
    ),
    ("ct int4", said(format="marlin-24"), "format is 'marlin-24'"),
    ("ct int4", said(sparsity_config={"format": "sparse-bitmask"}), "sparsity_config is"),
    ("ct int4", said(config_groups={}), "config_groups is {}, expected one scheme for all"),
    ("ct int4", said(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme = .* is not supported"),
    ("ct int4", scheme(num_bits=3), "weights: num_bits is 3"),
    ("ct int4", scheme(zp_dtype="float8"), "weights: zp_dtype = 'float8' is not supported"),
    ("ct w8a8", scheme(symmetric=False), "weights: symmetric is False"),
    ("mxfp4", said(bits=4), "bits = 4 is not supported"),
    ("mxfp4", tensor("down_proj_scales", DROP), "down_proj_scales is missing"),
    ("mxfp4", tensor("down_proj_scales", filled(255)), "down_proj_scales holds 255, expected 0 to 254"),
    ("mxfp4", tensor("down_proj_blocks", lambda a: a[..., :8]), r"down_proj_blocks is .* of U8, expected"),
    ("mxfp4", tensor("down_proj_blocks", lambda a: a[..., 0]), r"down_proj_blocks is .* of U8, expected"),
]


@pytest.fixture(scope="module")
def good(plain, tmp_path_factory):
    """good(format): a folder that loads."""

    @functools.cache
    def folder(format):
        family = "gpt_oss" if format == "mxfp4" else "llama"
        return written(plain(family), tmp_path_factory.mktemp("good"), format)[0]

    return folder


@pytest.mark.parametrize(("format", "change", "message"), HOSTILE, ids=[message for _, _, message in HOSTILE])
def test_what_does_not_fit_or_changes_the_maths_is_refused_in_a_sentence(format, change, message, good, tmp_path):
    values = json.loads((good(format) / "config.json").read_text())
    tensors = tensors_of(good(format))
    change(values["quantization_config"], tensors)
    folder = others.save(tmp_path / "m", values, tensors)
    with pytest.raises(UserError, match=message) as caught:
        checkpoint = open_checkpoint(folder)
        checkpoint.shapes()
        checkpoint.model()
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", [*others.FORMATS, "mxfp4"])
def test_a_config_that_speaks_of_few_bits_where_there_are_none_is_refused(format, good, plain, tmp_path):
    values = json.loads((good(format) / "config.json").read_text())
    folder = others.save(tmp_path / "m", values, tensors_of(plain("gpt_oss" if format == "mxfp4" else "llama")))
    with pytest.raises(UserError, match=r"m: config.json has a quantization_config, but no tensor is in few bits"):
        open_checkpoint(folder)


@pytest.mark.oracle
def test_fp8_and_mxfp4_are_those_of_transformers(plain, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize  # pyright: ignore[reportMissingImports]
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # pyright: ignore[reportMissingImports]

    folder, _ = written(plain("llama"), tmp_path / "fp8", "fp8 tiles")
    source = opened(folder)
    for name in source.matrices:
        codes, scales = (
            torch.tensor(source.file.stored(one).astype(np.float32)) for one in source.matrices[name].names
        )
        theirs = Fp8Dequantize(None)._dequantize_one(codes.to(torch.float8_e4m3fn), scales, torch.float32)
        assert np.array_equal(source.read(name), theirs.numpy())

    folder, _ = written(plain("gpt_oss"), tmp_path / "mxfp4", "mxfp4")
    source = opened(folder)
    for name in source.matrices:
        blocks, scales = (torch.tensor(source.file.stored(one)) for one in source.matrices[name].names)
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert np.array_equal(source.read(name), theirs.numpy())
