"""Vocabularies for tests: as the library that made them has them, in folders and in the metadata of GGUF files."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import files
import numpy as np
from odd_texts import odd_texts
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from minillm.checkpoint.vocabulary import tokenizer_from_gguf, tokenizer_to_gguf
from minillm.config import Config
from minillm.folders import bundled_models

GOLDENS = Path(__file__).parent / "goldens" / "sentencepiece"
V = 700


def model_file(name: str) -> bytes:
    """A model: `bpe` comes with minillm, `unigram` (NFKC, 1,000 pieces) with the library's sources."""
    if name == "bpe":
        return (bundled_models()["tiny-transformer"] / "tokenizer.model").read_bytes()
    return lzma.decompress((GOLDENS / "botchan_en_unigram_1000.model.xz").read_bytes())


def original(data: bytes) -> SentencePieceProcessor:
    library = SentencePieceProcessor()
    library.LoadFromSerializedProto(data)
    return library


@cache
def byte_level() -> str:
    """A tokenizer.json whose merges go across words, digits and signs, so that every cut shows."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    library.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=V - 4,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        show_progress=False,
    )
    library.train_from_iterator(odd_texts(1500, seed=1), trainer)
    library.add_tokens(["    ", "ab c"])
    return library.to_str()


def cut_as(pre: str) -> Tokenizer:
    """That tokenizer, cutting text in another way."""
    described = json.loads(byte_level())
    described["model"]["ignore_merges"] = PRE_TOKENIZERS[pre].whole
    library = Tokenizer.from_str(json.dumps(described))
    PRE_TOKENIZERS[pre].apply(library)
    return library


def folder_with(folder: Path, *, pre: str | None = None, model: bytes | None = None, **settings: Any) -> Path:
    """A folder with random weights and a tokenizer of one of the two kinds, and its settings."""
    v = V if model is None else original(model).GetPieceSize()
    embedding = np.random.default_rng(0).normal(size=(v, files.CONFIG["hidden_size"])).astype(np.float32)
    tensors = files.hf_tensors() | {"model.embed_tokens.weight": embedding}
    files.write_folder(folder, files.CONFIG | {"vocab_size": v, "eos_token_id": 2}, tensors)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if pre is not None:
        cut_as(pre).save(str(folder / "tokenizer.json"))
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    return folder


def rebuilt(folder: Path):
    """The tokenizer that a GGUF file made of a folder would have, and its metadata."""
    config: Config = open_checkpoint(folder).config
    metadata = tokenizer_to_gguf(folder, config)
    if config.eos:
        metadata["tokenizer.ggml.eos_token_id"] = config.eos[0]
    tokenizer = tokenizer_from_gguf(metadata, "test.gguf")
    assert tokenizer is not None
    return tokenizer, metadata
