"""Models spread over eight pretend devices; test_on_eight_devices.py runs this in a process that has them."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import families
import files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from agreement import QUICK

import minillm
from minillm import laws
from minillm.blocks.moe import expert_load
from minillm.cache import StateSpec
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.generate import Plan, advance, generate_tokens
from minillm.parallel import new_mesh
from minillm.sampling import new_sampler
from minillm.span import Span

MESHES = """
    model=2 model=4 model=8 data=2 data=2,model=4 expert=2 expert=4 model=4,expert=2 data=2,model=2,expert=2
    data=4,expert=2 seq=2 seq=4,model=2 data=2,seq=2,expert=2
""".split()

# These differ most, and between them cut everything that is ever cut; v = 61 is divided by none.
QUICKLY = {
    ("llama", "model=8"),
    ("gpt2", "data=2,model=4"),
    ("gpt_oss", "data=2,model=2,expert=2"),
    ("olmoe", "model=4,expert=2"),
    ("deepseek_v3", "model=4,expert=2"),
    ("mamba", "model=8"),
    ("mamba2", "model=4"),
    ("qwen3_next", "data=2,model=4"),
    ("gemma2", "seq=4,model=2"),
    ("gpt_oss", "data=2,seq=2,expert=2"),
}
EVERY = [(family, mesh) for family in [*families.FAMILIES, "bamba"] for mesh in MESHES]
REFUSALS = r"does not divide|cannot divide the tokens|no layer of \w+ has experts"


ALIKE = {"llama", "gpt2", "gpt_oss", "olmoe", "mamba", "mamba2"}  # one layer shows what all do


def values_of(family: str, folder) -> dict:
    values = families.FAMILIES.get(family) or tiny.settings(f"{family}_0", folder)
    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 1} if family in ALIKE else {}
    layers |= {"mlp_only_layers": [0]} if family == "qwen3_next" else {}
    return values | layers | {"vocab_size": 61}


@partial(jax.jit, donate_argnames="state", compiler_options=QUICK)
def read(model, state, tokens, start):
    """Logits of tokens at `start`, and the memory behind them."""
    b, t = tokens.shape
    at = Span.chain(jnp.full(b, start, jnp.int32), jnp.full(b, t, jnp.int32), t)
    logits, pending = model(tokens, state, at)
    keep = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
    return logits, model.commit(pending, at, keep, jnp.full(b, t, jnp.int32))


def prefill_and_steps(model, tokens) -> np.ndarray:
    """Logits of two texts: of their first tokens together, then one by one, from memory."""
    state = model.init_state(StateSpec(slots=2, max_len=16))
    logits, state = read(model, state, tokens[:, :12], np.int32(0))
    found = [logits]
    for i in (12, 13):
        logits, state = read(model, state, tokens[:, i : i + 1], np.int32(i))
        found.append(logits)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    ("family", "mesh"), [pytest.param(*one, marks=() if one in QUICKLY else pytest.mark.slow) for one in EVERY]
)
@pytest.mark.usefixtures("quick_programs")
def test_prefill_and_steps_on_a_mesh_are_the_whole_text_of_one_device(family, mesh, tmp_path):
    values = values_of(family, tmp_path)
    try:
        lm = minillm.init(values, mesh=new_mesh(mesh))
    except UserError as error:
        assert re.search(REFUSALS, str(error))
        assert (family, mesh) not in QUICKLY
        return
    tokens = np.random.default_rng(1).integers(0, 61, (2, 14)).astype(np.int32)
    alone = laws.read_whole(minillm.init(values).model, tokens, np.full(2, 14, np.int32))
    tiny.assert_agrees(prefill_and_steps(lm.model, tokens), np.asarray(alone))


LLAMA = families.FAMILIES["llama"]


@pytest.fixture(scope="module")
def llama():
    """A Llama of one layer on four devices."""
    return minillm.init(LLAMA | {"num_hidden_layers": 1}, mesh=new_mesh("model=4"))


COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def test_a_step_of_llama_sums_twice_a_layer_and_for_the_embedding_gathers_logits_and_sends_nothing_else():
    model, b = minillm.init(LLAMA, mesh=new_mesh("model=4")).model, 2
    token, number = jax.ShapeDtypeStruct((b, 1), np.int32), jax.ShapeDtypeStruct((b,), np.int32)
    state = model.state_shapes(StateSpec(slots=b, max_len=16))
    sampler = new_sampler(temperature=0.0)
    compiled = advance.lower(model, state, None, sampler, token, number, number).compile(QUICK)
    found = Counter(COLLECTIVE.findall(compiled.as_text() or ""))
    assert found == {"all-reduce": 2 * 2 + 1, "all-gather": 1}


@pytest.mark.usefixtures("quick_programs")
def test_a_model_on_a_mesh_obeys_the_laws_of_one_that_is_not(llama):
    def tokens(rng, shape):
        return rng.integers(0, families.V, shape).astype(np.int32)

    laws.check_donation(llama.model, tokens)
    laws.check_schedules(llama.model, tokens, examples=2, steps=6, all_slots=True)


def test_weights_and_memory_are_divided_among_the_devices(llama):
    def held(tree) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    one, spec = minillm.init(LLAMA | {"num_hidden_layers": 1}).model, StateSpec(slots=1, max_len=64)
    norms = sum(leaf.nbytes for leaf in jax.tree.leaves(one) if leaf.ndim == 1)
    assert held(llama.model) == (held(one) - norms) // 4 + norms
    assert held(llama.model.init_state(spec)) == held(one.init_state(spec)) // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small checkpoint, of one layer."""
    tensors = {name: array for name, array in files.hf_tensors().items() if "layers.1." not in name}
    return files.write_folder(tmp_path_factory.mktemp("llama"), files.CONFIG | {"num_hidden_layers": 1}, tensors)


@pytest.fixture(scope="module")
def loaded(folder, quick_programs):
    """Its model on eight devices, and on one."""
    return minillm.load(folder, mesh=new_mesh("data=2,model=4")), minillm.load(folder)


PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"draft": "prompt-lookup"}, id="draft"),
        pytest.param({"cache": "sinks:24"}, id="sinks", marks=pytest.mark.slow),
        pytest.param({"exact": True, "repeat_penalty": 1.2}, id="exact", marks=pytest.mark.slow),
    ],
)
def test_a_loaded_model_says_the_same_on_eight_devices_as_on_one(loaded, options):
    """A draft changes nothing, so that one device needs none."""
    greedy = {"max_tokens": 30, "temperature": 0.0}
    alone = {name: value for name, value in options.items() if name != "draft"}
    many, one = (
        lm.generate(PROMPT, **greedy, **how).tokens for lm, how in zip(loaded, (options, alone), strict=True)
    )
    assert many == one


def test_logits_of_a_batch_are_divided_by_its_sequences(loaded):
    tokens = np.random.default_rng(0).integers(0, 272, (4, 24))
    many, one = (lm.logits(tokens) for lm in loaded)
    tiny.assert_agrees(many, one)


@pytest.mark.slow
def test_memory_that_grows_and_a_prompt_in_chunks_are_read_right(loaded):
    prompt, memory = np.random.default_rng(2).integers(0, 272, 600).tolist(), StateSpec(1, 1)
    many, one = (
        list(generate_tokens(lm.model, Plan(prompt, 612, 604, 1024, memory), new_sampler(temperature=0.0)))
        for lm in loaded
    )
    assert many == one


def test_the_engine_serves_a_model_whose_weights_are_divided(loaded, folder):
    said = []
    for lm in (minillm.load(folder, mesh=new_mesh("model=4")), loaded[1]):
        engine = Engine(lm, max_batch=2, context=64)
        prompts = PROMPT * 3, [*PROMPT * 3, 9], [3, 4]
        requests = [engine.submit(prompt, max_tokens=16, temperature=0.0) for prompt in prompts]
        engine.run()
        said.append([request.tokens for request in requests])
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (lambda lm: lm.quantize("awq:int4-g32"), "quantise without one"),
        (lambda lm: expert_load(lm.model, jnp.array([[1]])), "no block is whole"),
        (lambda lm: Engine(lm), "data=2, which cannot divide memory in pages"),
    ],
    ids=["quantising", "looking into blocks", "pages that all share"],
)
def test_what_a_mesh_cannot_do_is_refused_by_name(loaded, refused, reason):
    with pytest.raises(UserError, match=reason):
        refused(loaded[0])


def test_an_engine_without_pages_refuses_to_divide_sequences(loaded):
    engine = Engine(loaded[0], kind="contiguous", context=64)
    engine.submit([1], max_tokens=2)
    with pytest.raises(UserError, match="data=2, which divides sequences by their order"):
        engine.run()


@pytest.mark.slow
def test_the_readmes_example_runs_on_eight_devices(capsys):
    readme = Path(minillm.__file__).parent / "README.md"
    (example,) = [one for one in re.findall(r"```python\n(.*?)```", readme.read_text(), re.S) if "new_mesh" in one]
    exec(example.replace('"model=1"', '"data=2,model=4"'), {})
    assert len(capsys.readouterr().out) > 20
