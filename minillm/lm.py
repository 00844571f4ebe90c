"""LM: a model and its tokenizer; what `minillm.load` returns."""

import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .archs import Arch, find_hf
from .blocks.params import stacked
from .cache import StateSpec
from .cache.spec import PLAIN, spec_named
from .chat import Message
from .checkpoint import hub
from .checkpoint.loader import Checkpoint, open_checkpoint
from .checkpoint.pull import MODELS, pulled
from .config import Config, Fields, shown
from .errors import UserError
from .folders import bundled_models
from .generate import Plan, bucket
from .model import Model
from .output import Output
from .parallel import Spread, answers, spread
from .quant import Dense, by_place, in_dtype, is_weight
from .quant.quantised import Change, Progress
from .sampling import is_count, new_sampler, require
from .span import Span
from .stream import Completion, Stream
from .tokenizer import Tokenizer
from .xla import give_memory_back, in_background, keep_programs

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from .speculative import Drafter

ENDLESS = 1 << 30  # tokens of a text whose memory does not grow
NO_KEYS = "none: it would change nothing in this model"
LOSSY = "another kind: what h2o forgets changes with drafts and batches; --lossy (lossy=True) allows it"


class LM:
    """A language model: `generate`, `stream`, `logits`; tokenizer is None for a checkpoint without one.

    Weights are read in the background, so that the first programs compile meanwhile; `model` waits for them.
    `shapes` is the model with shapes in their place.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer | None, shapes: Any, weights: Future[Any]):
        self.config, self.tokenizer, self.shapes, self.weights = config, tokenizer, shapes, weights

    @property
    def model(self) -> Any:
        """The `Model` with its weights, or a `Spread` on a mesh."""
        return self.weights.result()

    @property
    def dtype(self) -> str:
        """What plain weights are kept in."""
        return jax.tree.leaves(self.shapes.norm)[0].dtype.name

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text."""
        return {*self.config.eos, *(self.tokenizer.ends if self.tokenizer else ())}

    def quantize(
        self,
        recipe: str,
        texts: Sequence[str] | None = None,
        *,
        folder: str | Path | None = None,
        progress: Progress = lambda *_: None,
    ) -> "tuple[LM, list[Change]]":
        """The same model with its matrices in few bits, and what became of each.

        recipe is one of `quant.recipes`, or several by `quant.rules`. METHOD:RECIPE, as in `compress.methods`,
        looks at what goes through the matrices while the model reads texts (those of `minillm.texts` unless
        given). auto:BITS measures which matrices need how many. In a folder a method keeps what is done, and a
        killed run goes on there. On a mesh every device rounds its own pieces, and there are no methods. progress
        is told what is being done, how many steps of it are, and of how many.

        UserError if the recipe is none, or names a matrix that cannot be stored so because a number in it is none.
        """
        from .compress.quantise import quantise

        if self.dtype != "float32":
            raise UserError(f"the weights are {self.dtype}, expected float32 to make few bits of; leave dtype out")
        folder = None if folder is None else Path(folder)
        model, changes = quantise(self.model, self.config, self.tokenizer, recipe, texts, folder, progress)
        weights: Future[Any] = Future()
        weights.set_result(model)
        if isinstance(model, Spread):
            return LM(self.config, self.tokenizer, model.shapes, weights), changes
        return LM(self.config, self.tokenizer, jax.eval_shape(lambda: model), weights), changes

    def logits(self, tokens) -> np.ndarray:
        """Scores of the next token after each: tokens i32 [b, t] -> float32 [b, t, v]."""
        try:
            tokens = np.asarray(tokens)
        except ValueError:
            raise UserError("tokens are rows of different lengths, expected int [b, t]") from None
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.size == 0:
            raise UserError(f"tokens have shape {list(tokens.shape)} and dtype {tokens.dtype}, expected int [b, t]")
        self._check_ids(tokens)
        b, t = tokens.shape
        if t > self.config.context:
            raise UserError(f"tokens have t = {t}, but the model's context is {self.config.context}; shorten them")
        row = np.zeros((b, bucket(t, 16)), np.int32)
        row[:, :t] = tokens
        return np.asarray(score(self.model, row, np.full(b, t, np.int32)))[:, :t]

    def generate(self, prompt: str | Sequence[int], **options) -> Completion:
        """Continue prompt, a text or token ids; options as in `stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.completion()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        draft: "str | Drafter | None" = None,
        exact: bool = False,
        cache: str | None = None,
        lossy: bool = False,
    ) -> Stream:
        """Pieces of text as they come, then `.completion()`; UserError names an option that does not fit.

        draft guesses tokens ahead, which changes the speed and not the text: `prompt-lookup`, `ngram`, `skip:K`
        (the model without K layers), a model by name or path, or any `Drafter`. In floating point a near-tie may
        still fall the other way; exact makes tokens the same to the bit, whatever drafts, and slower.

        cache is how keys and values are remembered: `int8` and `fp8`, in about a quarter of the memory; `kivi4` and
        `kivi2`, in 4 or 2 bits but for the newest 32 to 63 tokens; `sinks:TOKENS`, the first four tokens and the
        newest ones, for texts longer than the context; `h2o:TOKENS`, those that matter most. A draft changes what
        h2o forgets, so the two go together only if lossy is set.
        """
        memory = self.memory(cache, lossy or (draft is None and not exact))
        sampler = new_sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
        )
        context = self.longest(memory)
        ids = self.prompt_ids(prompt, context)
        require(is_count(max_tokens), "max_tokens", max_tokens, "1 or more")
        memory = memory.for_at_most(bucket(min(len(ids) + int(max_tokens), context), 1))
        plan = Plan.of(ids, int(max_tokens), context, memory)
        output = Output(self.tokenizer, self.ends, stop)
        return Stream(self, plan, sampler, output, self.drafter(draft), exact)

    def drafter(self, draft: "str | Drafter | None") -> "Drafter | None":
        """A drafter by name, or as it is; UserError if it is none."""
        known = draft is None or isinstance(draft, str) or hasattr(draft, "draft")
        require(known, "draft", draft, "a name or something with a method draft")
        return new_drafter(self, draft) if isinstance(draft, str) else draft

    def memory(self, cache: str | None, lossy: bool) -> StateSpec:
        """The kind of memory that a user asks for by name, for one sequence of one token.

        UserError if it would change nothing, or if what is said would depend on how, unless that may be `lossy`.
        """
        if cache is None:
            return PLAIN
        spec, long = spec_named(cache), self.config.context
        shapes = self.shapes.share if isinstance(self.shapes, Spread) else self.shapes
        require(lossy or spec.kind != "h2o", "cache", cache, LOSSY)
        require(states_differ(shapes, spec.for_at_most(long), PLAIN, long), "cache", cache, NO_KEYS)
        return spec

    def longest(self, memory: StateSpec) -> int:
        """How many tokens a text may have in such memory."""
        return ENDLESS if memory.kind == "sinks" and not self.config.learned_positions else self.config.context

    def prompt_ids(self, prompt: str | Sequence[int], context: int | None = None) -> list[int]:
        """Token ids of a prompt that this model can continue; context is its own unless given."""
        context = context or self.config.context
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise UserError("this checkpoint has no tokenizer, so the prompt must be token ids")
            ids = self.tokenizer.encode(prompt)
        else:
            try:
                ids = [operator.index(token) for token in prompt]
            except TypeError:
                raise UserError("the prompt holds something that is no token id, expected whole numbers") from None
        if not ids:
            raise UserError("the prompt is empty, expected at least one token")
        if len(ids) >= context:
            raise UserError(f"the prompt has {len(ids)} tokens, but the context is {context}; shorten it")
        self._check_ids(np.array(ids))
        return ids

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation by the checkpoint's own template."""
        if self.tokenizer is None:
            raise UserError("this checkpoint has no tokenizer, so it has no chat template")
        return self.tokenizer.encode_chat(messages)

    def _check_ids(self, tokens: np.ndarray) -> None:
        bad = tokens[(tokens < 0) | (tokens >= self.config.v)]
        if bad.size:
            raise UserError(f"token id {bad.flat[0]} is outside the vocabulary, expected 0 to {self.config.v - 1}")


def states_differ(shapes: Model, one: StateSpec, other: StateSpec, length: int) -> bool:
    """Whether memory of one kind looks different from memory of the other, for sequences of so many tokens."""

    def state(spec: StateSpec) -> Any:
        return jax.eval_shape(lambda: shapes.init_state(spec.with_length(length)))

    return state(one) != state(other)


@jax.jit
def score(model: Model, tokens: jax.Array, n: jax.Array) -> jax.Array:
    """Logits [b, t, v] of whole sequences tokens i32 [b, t], n [b] of them real."""
    return model(tokens, None, Span.chain(jnp.zeros_like(n), n, tokens.shape[1]))[0]


def new_drafter(lm: LM, name: str) -> "Drafter":
    """A drafter for a model by its name; UserError if there is none, or if it does not fit."""
    from .speculative.draft_model import DraftModel, without_layers
    from .speculative.ngram import NGram
    from .speculative.prompt_lookup import PromptLookup

    if name == "prompt-lookup":
        return PromptLookup()
    if name == "ngram":
        return NGram()
    if name.startswith("skip:"):
        layers = name.removeprefix("skip:")
        require(layers.isdecimal() and len(layers) < 5, "draft", name, "skip:K, K layers to leave out")
        return DraftModel(without_layers(lm.model, lm.config, int(layers)), lm.config.context)
    try:
        small = load(name)
    except UserError as error:
        raise UserError(f"draft is {name!r}, expected prompt-lookup, ngram, skip:K or a model: {error}") from None
    same = small.config.v == lm.config.v and vocabulary_of(small) == vocabulary_of(lm)
    require(same, "draft", name, "a model with the tokens of the one it drafts for")
    return DraftModel(small.model, small.config.context)


def vocabulary_of(lm: LM) -> dict[str, int] | None:
    """The tokens of a model by name; None if it has no tokenizer."""
    return lm.tokenizer.backend.vocabulary() if lm.tokenizer else None


def load(
    model: str | Path,
    *,
    context: int | None = None,
    dtype: str = "float32",
    arch: Arch | None = None,
    mesh: "Mesh | None" = None,
    progress: Progress = lambda *_: None,
) -> LM:
    """Open a model: a name (`minillm list`), a `.gguf` file, or a folder with config.json and safetensors.

    context limits how long a sequence may get (models with two sets of rotary factors choose by it); dtype is what
    plain weights, what is computed from them, and keys and values are kept in: float32, or bfloat16 in half of the
    memory (products are summed in float32 all the same); arch is a module like those in `minillm/archs`, for a
    family that is not among them; mesh, one of `parallel.new_mesh`, spreads the model over its devices, and a
    process reads no more than its own devices hold; progress is told from another thread how many bytes of the
    weights have been read, and of how many. UserError if the files are not whole or not supported. Returns while
    the weights are still being read.
    """
    keep_programs()
    give_memory_back()
    if context is not None:
        require(is_count(context), "context", context, "1 or more")
    checkpoint = open_checkpoint(find_model(model), context, arch)
    shapes, tokenizer = checkpoint.shapes(), checkpoint.tokenizer()
    require(dtype in ("float32", "bfloat16"), "dtype", dtype, "float32 or bfloat16")
    narrow = () if dtype == "float32" else (dtype,)
    if narrow:
        coded = any(is_weight(leaf) and not isinstance(leaf, Dense) for _, leaf in by_place(shapes)[0])
        if coded or not isinstance(checkpoint, Checkpoint):
            raise UserError(f"{checkpoint.source.where}: is in few bits already; leave dtype out")
        shapes = in_dtype(shapes, dtype)
    if mesh is None:
        return LM(checkpoint.config, tokenizer, shapes, in_background(checkpoint.model, progress, *narrow))
    shapes = spread(checkpoint.config, mesh, answers(shapes, checkpoint.config))
    return LM(checkpoint.config, tokenizer, shapes, in_background(checkpoint.on_mesh, mesh, progress, *narrow))


def init(
    config: Config | Mapping[str, Any], seed: int = 0, *, arch: Arch | None = None, mesh: "Mesh | None" = None
) -> LM:
    """A model of random weights, without a tokenizer, from a Config or the entries of a config.json.

    arch and mesh are as in `load`.
    UserError if the entries are not understood. The same seed gives the same weights with the same NumPy.
    """
    keep_programs()
    give_memory_back()
    if not isinstance(config, Config):
        if not isinstance(config, Mapping):
            raise UserError(
                f"config is a {type(config).__name__}, expected a Config or the entries of a config.json"
            )
        arch = arch or find_hf(config.get("model_type"), "config: model_type")
        config = arch.config_from_hf(Fields(config, "config"))
    rng = np.random.default_rng(seed)
    build, asarray = (Model.build, jnp.asarray) if mesh is None else (partial(spread, mesh=mesh), np.asarray)
    shapes = build(config, get=lambda name, layer, *shapes, init: stacked(shapes))
    model = build(config, get=lambda name, layer, *shapes, init: asarray(init(rng, stacked(shapes).shape)))
    weights: Future[Any] = Future()
    weights.set_result(model)
    return LM(config, None, shapes, weights)


def find_model(model: str | Path) -> Path:
    """The path of a model by name or path; UserError says how to get one that is not there."""
    path = Path(model)
    try:
        if str(model) and path.exists():
            return path
    except OSError:  # a name too long for any file
        pass
    bundled = bundled_models()
    if str(model) in bundled:
        return bundled[str(model)]
    if str(model) in MODELS:
        return pulled(str(model))
    if str(model).startswith(hub.PREFIX):
        return hub.cached(str(model))
    known = ", ".join([*bundled, *MODELS])
    name = repr(str(model)) if len(str(model)) < 500 else shown(str(model))
    raise UserError(
        f"model {name} is neither a file, a folder nor a known name; names: {known}{hub.hint(str(model))}"
    )
