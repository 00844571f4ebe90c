"""Mamba (Gu and Dao 2023, arXiv:2312.00752), and FalconMamba with its norms (Zuo et al. 2024, arXiv:2410.05355).

No attention and no feed-forward layer: one Mamba block a layer, and nothing else.
"""

from ..blocks import MambaSpec
from ..config import Config, Fields
from .from_gguf import decoder_from_gguf
from .from_hf import decoder_from_hf
from .tensors import Entry, Flat, LogOfNegative, Source, Tensor, Transposed
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("mamba", "falcon_mamba"), ("mamba",)


def mixer_tensors(mixer: str) -> dict[str, Entry]:
    """The tensors of a Mamba layer but its norm, by how their names begin."""
    return {
        "mamba.x_z": Tensor(mixer + "in_proj.weight"),
        "mamba.x_z.bias": Tensor(mixer + "in_proj.bias"),
        "mamba.conv": Transposed(Flat(Tensor(mixer + "conv1d.weight"), heads="i")),
        "mamba.conv.bias": Tensor(mixer + "conv1d.bias"),
        "mamba.dt_B_C": Tensor(mixer + "x_proj.weight"),
        "mamba.dt": Tensor(mixer + "dt_proj.weight"),
        "mamba.dt.bias": Tensor(mixer + "dt_proj.bias"),
        "mamba.A_log": Transposed(Tensor(mixer + "A_log")),
        "mamba.D": Tensor(mixer + "D"),
        "mamba.out": Tensor(mixer + "out_proj.weight"),
        "mamba.out.bias": Tensor(mixer + "out_proj.bias"),
    }


HF_TENSORS = {
    "embed": Tensor("backbone.embeddings.weight"),
    "norm": Tensor("backbone.norm_f.weight"),
    "head": Tensor("lm_head.weight"),
    "mamba.norm": Tensor("backbone.layers.{i}.norm.weight"),
    **mixer_tensors("backbone.layers.{i}.mixer."),
}

GGUF_TENSORS = {
    "embed": Tensor("token_embd.weight"),
    "norm": Tensor("output_norm.weight"),
    "head": Tensor("output.weight"),
    "mamba.norm": Tensor("blk.{i}.attn_norm.weight"),
    "mamba.x_z": Tensor("blk.{i}.ssm_in.weight"),
    "mamba.conv": Transposed(Tensor("blk.{i}.ssm_conv1d.weight")),
    "mamba.conv.bias": Tensor("blk.{i}.ssm_conv1d.bias"),
    "mamba.dt_B_C": Tensor("blk.{i}.ssm_x.weight"),
    "mamba.dt": Tensor("blk.{i}.ssm_dt.weight"),
    "mamba.dt.bias": Tensor("blk.{i}.ssm_dt.bias"),
    "mamba.A_log": Transposed(LogOfNegative(Tensor("blk.{i}.ssm_a"))),
    "mamba.D": Tensor("blk.{i}.ssm_d"),
    "mamba.out": Tensor("blk.{i}.ssm_out.weight"),
}

HARMLESS_TENSORS = ("lm_head.weight",)  # stored though it is tied

# How weights were drawn before training, and the names that the authors' own code has for the same sizes.
HARMLESS_FIELDS = """
    time_step_min time_step_max time_step_floor time_step_scale time_step_init_scheme use_associative_scan
    use_falcon_mambapy pad_vocab_size_multiple fused_add_norm d_model d_inner n_layer
""".split()

UNBOUNDED = 1 << 20  # a memory of fixed size sets no longest sequence; this is what llama.cpp writes


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    d, falcon = fields.integer("hidden_size"), fields.text("model_type") == "falcon_mamba"
    i = fields.integer("expand", 2) * d
    fields.only("intermediate_size", i)
    block = MambaSpec(
        i,
        n=fields.integer("state_size", 16),
        rank=rank_from_hf(fields, "time_step_rank"),
        w=fields.integer("conv_kernel", 4),
        bias=fields.flag("use_bias", False),
        conv_bias=fields.flag("use_conv_bias", True),
        norms="plain" if falcon else "",
        norm_eps=fields.number("mixer_rms_eps", 1e-6) if falcon else 0.0,
    )
    return recurrent_decoder_from_hf(fields, (block,), tied=True, harmless=HARMLESS_FIELDS)


def rank_from_hf(fields: Fields, key: str) -> int:
    """The width of the bottleneck that dt comes through, by default a sixteenth of the model's, rounded up."""
    if fields.values.get(key, "auto") != "auto":
        return fields.integer(key)
    fields.read.add(key)
    return -(-fields.integer("hidden_size") // 16)


def recurrent_decoder_from_hf(fields: Fields, blocks: tuple, **options) -> Config:
    """Config of a decoder in which nothing but recurrent blocks remember; options as in `decoder_from_hf`."""
    for key, only in (("hidden_act", "silu"), ("rms_norm", True), ("ssm_cfg", {})):
        fields.only(key, only)
    return decoder_from_hf(fields, lambda i: blocks, eps="layer_norm_epsilon", longest=UNBOUNDED, **options)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `mamba.*` metadata. There is one constant for all norms, those of FalconMamba included."""
    for key in ("feed_forward_length", "attention.head_count"):
        fields.only(key, 0)
    falcon = fields.flag("ssm.dt_b_c_rms", False)
    block = MambaSpec(
        i=fields.integer("ssm.inner_size"),
        n=fields.integer("ssm.state_size"),
        rank=fields.integer("ssm.time_step_rank"),
        w=fields.integer("ssm.conv_kernel"),
        norms="plain" if falcon else "",
        norm_eps=fields.number("attention.layer_norm_rms_epsilon") if falcon else 0.0,
    )
    return decoder_from_gguf(fields, source, lambda i: (block,), arch="mamba")


def gguf_metadata(config: Config) -> Metadata:
    """The `mamba.*` metadata of a config."""
    return decoder_to_gguf(config, "mamba")
