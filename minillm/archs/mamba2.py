"""Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), in the form of Codestral Mamba.

One Mamba-2 block a layer: A is one number a head, and z, x, B, C and dt come out of one matrix.
"""

from math import inf

from ..blocks import Mamba2Spec
from ..config import Config, Fields
from . import mamba
from .from_gguf import decoder_from_gguf
from .mamba import HARMLESS_TENSORS, recurrent_decoder_from_hf  # noqa: F401
from .tensors import Entry, Flat, LogOfNegative, Source, Tensor, Transposed
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("mamba2",), ("mamba2",)


def mixer_tensors(mixer: str) -> dict[str, Entry]:
    """The tensors of a Mamba-2 layer but its norm, by how their names begin."""
    return {
        "mamba2.z_xBC_dt": Tensor(mixer + "in_proj.weight"),
        "mamba2.z_xBC_dt.bias": Tensor(mixer + "in_proj.bias"),
        "mamba2.conv": Transposed(Flat(Tensor(mixer + "conv1d.weight"), heads="mixed")),
        "mamba2.conv.bias": Tensor(mixer + "conv1d.bias"),
        "mamba2.dt_bias": Tensor(mixer + "dt_bias"),
        "mamba2.A_log": Tensor(mixer + "A_log"),
        "mamba2.D": Tensor(mixer + "D"),
        "mamba2.y_norm": Tensor(mixer + "norm.weight"),
        "mamba2.out": Tensor(mixer + "out_proj.weight"),
        "mamba2.out.bias": Tensor(mixer + "out_proj.bias"),
    }


HF_TENSORS = {
    **mamba.HF_TENSORS,
    "mamba2.norm": Tensor("backbone.layers.{i}.norm.weight"),
    **mixer_tensors("backbone.layers.{i}.mixer."),
}

GGUF_TENSORS = {
    **mamba.GGUF_TENSORS,
    "mamba2.norm": Tensor("blk.{i}.attn_norm.weight"),
    "mamba2.z_xBC_dt": Tensor("blk.{i}.ssm_in.weight"),
    "mamba2.conv": Transposed(Tensor("blk.{i}.ssm_conv1d.weight")),
    "mamba2.conv.bias": Tensor("blk.{i}.ssm_conv1d.bias"),
    "mamba2.dt_bias": Tensor("blk.{i}.ssm_dt.bias"),
    "mamba2.A_log": LogOfNegative(Flat(Tensor("blk.{i}.ssm_a"), heads="h")),
    "mamba2.D": Flat(Tensor("blk.{i}.ssm_d"), heads="h"),
    "mamba2.y_norm": Flat(Tensor("blk.{i}.ssm_norm.weight"), heads="g"),
    "mamba2.out": Tensor("blk.{i}.ssm_out.weight"),
}

# How weights were drawn before training, how kernels cut the time, and what no code reads.
HARMLESS_FIELDS = "time_step_min time_step_max time_step_floor time_step_rank chunk_size norm_before_gate".split()

# Steps are positive, so these limit nothing: as transformers 5 and 4 write them, and in Python. Of others
# transformers itself keeps to the limits in a prefill and not in a step.
NO_LIMITS = ([0.0, {"__float__": "Infinity"}], [0.0, inf], (0.0, inf))


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    h, k = fields.integer("num_heads"), fields.integer("head_dim")
    g, i = fields.integer("n_groups", 8), fields.integer("expand", 2) * fields.integer("hidden_size")
    fields.require(h * k == i, "num_heads", f"expand * hidden_size / head_dim = {i} / {k}")
    fields.require(h % g == 0, "n_groups", f"a divisor of num_heads = {h}")
    fields.only("intermediate_size", i)
    fields.only("time_step_limit", *NO_LIMITS)
    block = Mamba2Spec(
        h,
        k,
        n=fields.integer("state_size", 128),
        g=g,
        w=fields.integer("conv_kernel", 4),
        bias=fields.flag("use_bias", False),
        conv_bias=fields.flag("use_conv_bias", True),
    )
    return recurrent_decoder_from_hf(fields, (block,), harmless=HARMLESS_FIELDS)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `mamba2.*` metadata."""
    for key in ("feed_forward_length", "attention.head_count"):
        fields.only(key, 0)
    block = mamba2_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda _: (block,), arch="mamba2")


def mamba2_from_gguf(fields: Fields) -> Mamba2Spec:
    """A Mamba-2 layer from a GGUF file's metadata, in which the number of heads is called time_step_rank."""
    h, g, i = (fields.integer(f"ssm.{key}") for key in ("time_step_rank", "group_count", "inner_size"))
    fields.require(i % h == 0, "ssm.time_step_rank", f"a divisor of ssm.inner_size = {i}")
    fields.require(h % g == 0, "ssm.group_count", f"a divisor of ssm.time_step_rank = {h}")
    return Mamba2Spec(h, i // h, fields.integer("ssm.state_size"), g, fields.integer("ssm.conv_kernel"))


def gguf_metadata(config: Config) -> Metadata:
    """The `mamba2.*` metadata of a config."""
    return decoder_to_gguf(config, "mamba2")
