"""Session: a conversation. What was read and said stays in memory, so that each turn reads only what is new.

Every turn is rendered and cut into tokens as a whole, as if there had been none before it, and the tokens with
which it begins as the memory does are not read again. So an answer does not depend on what happened to be in
memory. Where a template drops something from earlier answers, or an answer is cut into other tokens than it came
in, the memory goes back to the place. Keys and values are rows, of which the last can be forgotten; a recurrent
state or a ring cannot go back, so with these all is read again.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .cache.contiguous import Contiguous
from .cache.prefix import agreement
from .cache.spec import PLAIN
from .chat import Message
from .errors import UserError
from .generate import AHEAD, CHUNK, LEAST_CHUNK, LEAST_MEMORY, advance, bucket, enlarged, i32, padded
from .model import Model
from .output import Output
from .sampling import History, Sampler, is_count, new_sampler, require
from .xla import on_device

if TYPE_CHECKING:
    from .lm import LM


class Session:
    """A conversation with a model: `ask` says something, and gives the answer as it comes.

    system         what the system says at the start, None: nothing
    messages       so far; they may be changed between turns
    finish_reason  how the last answer ended, as in `Completion`
    """

    def __init__(self, lm: "LM", system: str | None = None, *, max_tokens: int = 1024, **sampling: Any):
        """Options as in `LM.stream`; UserError names one that does not fit, or says that the model cannot chat."""
        if lm.tokenizer is None or lm.tokenizer.chat_template is None:
            raise UserError("this checkpoint has no chat template, so it cannot chat; smollm2-135m has one")
        require(is_count(max_tokens), "max_tokens", max_tokens, "1 or more")
        self.lm, self.max_tokens, self.sampler = lm, max_tokens, new_sampler(**sampling)
        self.memory, self.system = Memory(lm.config.context), system
        self.finish_reason: str | None = None
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        first: Message = {"role": "system", "content": self.system or ""}
        self.messages = [] if self.system is None else [first]

    def ask(self, content: str) -> Generator[str]:
        """Pieces of the answer. What was said is in `messages` afterwards; nothing, if no answer began.

        UserError if the conversation does not fit into the context.
        """
        said: list[Message] = [*self.messages, {"role": "user", "content": content}]
        ids, context = self.lm.chat_ids(said), self.lm.config.context
        if len(ids) >= context:
            raise UserError(f"the conversation has {len(ids)} tokens, but the context is {context}; /reset it")
        output = Output(self.lm.tokenizer, self.lm.ends, ())
        try:
            for token in self.tokens(self.lm.prompt_ids(ids)):
                yield output.push(token)
                if output.finish_reason is not None:
                    return
            yield output.end("length")
        finally:
            self.finish_reason = output.finish_reason or "interrupted"
            if output.tokens or output.finish_reason is not None:
                self.messages = [*said, {"role": "assistant", "content": output.text}]

    def tokens(self, ids: list[int]) -> Iterator[int]:
        """The tokens that follow ids, as `generate_tokens` gives them."""
        model, memory, sampler = self.lm.model, self.memory, self.sampler
        end = min(len(ids) + self.max_tokens, self.lm.config.context)
        memory.go_back(ids[:-1])  # one is left to read
        memory.make_room(model, min(end, len(ids) + AHEAD))
        history = memory.history(len(ids), model.embed.shape[0]) if sampler.penalises else None
        new = ids[len(memory.text) :]
        while True:
            history, token = memory.read(model, new, sampler, history)
            yield token
            if len(memory.text) + 1 == end:
                return
            new = [token]


class Memory:
    """What a model remembers of one text.

    text      the tokens it has read
    state     the memory of its blocks, None before there is any; capacity: for how many tokens it has room
    """

    def __init__(self, context: int):
        self.context = context
        self.text: list[int] = []
        self.state: Any = None
        self.capacity = 0

    def go_back(self, ids: Sequence[int]) -> None:
        """Forget what does not begin ids."""
        same = 0 if self.state is None else agreement(self.text, ids)
        if same < len(self.text) and not only_rows(self.state):
            same = 0
        del self.text[same:]

    def make_room(self, model: Model, length: int) -> None:
        """Have room for so many tokens."""
        if self.state is not None and length <= self.capacity:
            return
        self.capacity = min(bucket(length, LEAST_MEMORY), self.context)
        room = model.init_state(PLAIN.with_length(self.capacity))
        self.state = room if self.state is None else enlarged(self.state, room)

    def read(
        self, model: Model, tokens: Sequence[int], sampler: Sampler, history: History | None
    ) -> tuple[History | None, int]:
        """Take in tokens; the history with them, and the token drawn after them."""
        drawn = None
        for first in range(0, len(tokens), CHUNK):
            chunk = tokens[first : first + CHUNK]
            self.make_room(model, len(self.text) + len(chunk))
            block, n = padded(chunk, 1 if len(chunk) == 1 else LEAST_CHUNK)
            state, self.state = self.state, None  # given away: if this is stopped midway there is none
            state, history, drawn = advance(model, state, history, sampler, block, i32(len(self.text)), i32(n))
            self.text += chunk
            self.state = state
        assert drawn is not None, "there is always a token to read"
        return history, drawn.item()

    def history(self, prompt: int, v: int) -> History:
        """What penalties look at: the tokens in memory, all part of a prompt of so many."""
        seen = np.zeros((1, v), bool)
        seen[0, np.array(self.text, int)] = True
        return History(on_device(seen), on_device(np.zeros((1, v), np.int32)), i32(prompt))


def only_rows(state: Any) -> bool:
    """Whether memory holds nothing but a row for each token."""

    def is_rows(part: Any) -> bool:
        return isinstance(part, Contiguous)

    return all(is_rows(part) for part in jax.tree.leaves(state, is_leaf=is_rows))
