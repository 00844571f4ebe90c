"""The contestants: minillm, transformers and llama.cpp, each made from the same GGUF file.

Each `open_*` gives a function that continues prompts of one length greedily, `(prompts, n) -> (tokens, seconds)`:
n + 1 tokens after each prompt, one text behind the other, and the seconds of the last n of each; for n = 0 those of
the first one, which is the prefill. An end of text does not stop it. All of them may use every core.
"""

import os
import shutil
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import minillm
from minillm.checkpoint.pull import pulled
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.generate import Plan, generate_tokens
from minillm.lm import LM
from minillm.sampling import new_sampler

from .timing import Decode

MODEL = "smollm2-135m"
PEER_PACKAGES = ("torch", "transformers", "gguf", "xllamacpp")
THREADS = os.cpu_count() or 1


def open_minillm(recipe: str | None, shape: dict[str, Any] | None = None) -> Decode:
    """Our own generation, in float32 or by a recipe; with random weights if a config.json's entries are given."""
    lm = minillm.load(MODEL) if shape is None else minillm.init(shape)
    if recipe:
        lm, _ = lm.quantize(recipe)
    lm = LM(replace(lm.config, eos=()), None, lm.shapes, lm.weights)

    def decode(prompts: list[list[int]], n: int) -> tuple[list[int], float]:
        return together(lm, prompts, n) if len(prompts) > 1 else alone(lm, prompts[0], n)

    return decode


def alone(lm: LM, prompt: list[int], n: int) -> tuple[list[int], float]:
    """One text by `generate_tokens`."""
    plan, greedy, began = Plan.of(prompt, n + 1, lm.config.context), new_sampler(temperature=0), time.perf_counter()
    tokens = generate_tokens(lm.model, plan, greedy)
    first, there = next(tokens), time.perf_counter()
    rest = list(tokens)
    return [first, *rest], time.perf_counter() - there if n else there - began


def together(lm: LM, prompts: list[list[int]], n: int) -> tuple[list[int], float]:
    """Several texts by the engine: n steps of all of them, after the last has its first token."""
    longest = n + 1 + len(prompts)  # the first texts go on while the others are read, and none may end
    engine = Engine(lm, max_batch=len(prompts), context=len(prompts[0]) + longest, kind="contiguous")
    requests = [engine.submit(prompt, max_tokens=longest, temperature=0.0) for prompt in prompts]
    while engine.waiting or not all(request.decodes for request in engine.order):
        engine.step()
    there = time.perf_counter()
    for _ in range(n):
        engine.step()
    seconds = time.perf_counter() - there
    return [token for request in requests for token in request.tokens[: n + 1]], seconds


def open_transformers(dtype: str, rows: int | None = None) -> Decode:
    """LlamaForCausalLM by its own `generate`, which was no slower than a bare loop over its cache.

    Eager, unless a number of rows is given: then its cache is a static one of so many, and `torch.compile` makes
    a program for the prompt and another for a token.
    """
    torch = import_module("torch")
    torch.set_num_threads(THREADS)
    model, cache = transformers_model().to(getattr(torch, dtype)), {}
    if rows is not None:
        model.forward = torch.compile(model.forward, dynamic=False)
        cache = {"cache_implementation": "static", "max_cache_len": rows}

    def decode(prompts: list[list[int]], n: int) -> tuple[list[int], float]:
        tokens, clock = torch.tensor(prompts), Clock()
        options = {"max_new_tokens": n + 1, "do_sample": False, "streamer": clock, **cache}
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        asked, first, *_, last = [*clock.times, clock.times[-1]]
        return out[:, tokens.shape[1] :].flatten().tolist(), last - first if n else first - asked

    return decode


class Clock:
    """A streamer for `generate` that notes when things came: the prompt, then each token."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, tokens) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def open_llama_cpp(kind: str) -> Decode:
    """llama.cpp with one text, given the model's own file (Q4_1) or one whose matrices are of another type."""
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.n_ctx, params.n_parallel, params.fit_params, params.verbosity = 1024, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE  # not mapped: the file goes away
    with tempfile.TemporaryDirectory() as folder:
        params.model.path = str(pulled(MODEL))
        if kind != "Q4_1":
            params.model.path = str(Path(folder) / "model.gguf")
            write_as(kind, params.model.path)
        server = xllamacpp.Server(params)
    options = {"temperature": 0, "samplers": ["temperature"], "ignore_eos": True, "cache_prompt": False}

    def decode(prompts: list[list[int]], n: int) -> tuple[list[int], float]:
        [prompt] = prompts
        request = {"prompt": prompt, "n_predict": n + 1, **options}
        # Token ids come only with log-probabilities, which cost time: ask for them in a call that is not timed.
        named = server.handle_completions({**request, "logprobs": 1})["choices"][0]["logprobs"]["content"]
        timings = server.handle_completions(request)["timings"]
        seconds = n / timings["predicted_per_second"] if n else timings["prompt_ms"] / 1000
        return [token["id"] for token in named], seconds

    return decode


HF_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def transformers_model() -> Any:
    """The model in transformers, its weights read by the gguf package and not by minillm."""
    gguf, torch, transformers = import_module("gguf"), import_module("torch"), import_module("transformers")
    reader = gguf.GGUFReader(pulled(MODEL))
    values = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}
    config = transformers.LlamaConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["embedding_length"],
        intermediate_size=values["feed_forward_length"],
        num_hidden_layers=values["block_count"],
        num_attention_heads=values["attention.head_count"],
        num_key_value_heads=values["attention.head_count_kv"],
        max_position_embeddings=values["context_length"],
        rms_norm_eps=values["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": values["rope.freq_base"]},
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        *layer, name, _ = tensor.name.replace("blk.", "layers.").split(".")
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name in heads:  # these rows are stored for interleaved RoPE, transformers has the half-split one
            array = array.reshape(heads[name], -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        weights[".".join(["model", *layer, HF_NAMES[name], "weight"])] = torch.tensor(np.array(array))
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model.eval()


def write_as(kind: str, path: str) -> None:
    """The model as a GGUF file with every matrix of a type, F32 or Q8_0, by the gguf package."""
    gguf = import_module("gguf")
    reader, writer = gguf.GGUFReader(pulled(MODEL)), gguf.GGUFWriter(path, "llama")
    wanted = gguf.GGMLQuantizationType[kind]
    all_or_most = "ALL" if kind == "F32" else "MOSTLY"
    changed = {"general.file_type": int(gguf.LlamaFileType[f"{all_or_most}_{kind}"])}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":  # which the writer adds itself
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, changed.get(name, field.contents()), field.types[0], element)
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        stored = wanted if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def require_peers() -> None:
    """UserError says how to get the packages of the peers, if one is not there."""
    lacking = [package for package in PEER_PACKAGES if find_spec(package) is None]
    if lacking:
        raise UserError(f"--peers needs {', '.join(lacking)}, not installed here; run: pip install -e '.[oracle]'")


def require_compiler() -> None:
    """UserError if `torch.compile` would find no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"--peers needs a C++ compiler for torch.compile, but {compiler} is not there; install it")
