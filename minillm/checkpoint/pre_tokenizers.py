"""How byte-level vocabularies cut a text before they merge: what `tokenizer.ggml.pre` in a GGUF file stands for.

A tokenizer.json spells its steps out; GGUF has only llama.cpp's name for them. A row gives the steps of the
tokenizer.json files that go by the name. llama.cpp, whose regular expressions know less of Unicode, has them in
other words, and composes no accents (NFC): on rare text a vocabulary is cut here as its model was trained, not as
llama.cpp cuts it.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers


@dataclass(frozen=True)
class Cut:
    """The steps in front of the merges.

    steps cut one after the other; in a regular expression each match becomes a piece of its own. compose says that
    letters and their accents are made one first (NFC); whole that a piece that is a token stays so, whatever the
    merges say; begins that a text begins with BOS where a file does not say.
    """

    steps: tuple[Any, ...]
    compose: bool = False
    whole: bool = False
    begins: bool = False

    def apply(self, library: Tokenizer) -> None:
        """Have a tokenizer cut like this; what merges, its model, knows `whole` already."""
        steps = [
            pre_tokenizers.Split(Regex(one), "isolated") if isinstance(one, str) else one for one in self.steps
        ]
        library.pre_tokenizer = pre_tokenizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
        if self.compose:
            library.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]


def one_of(*expressions: str) -> str:
    """The expression that matches what the first of several does that matches."""
    return "|".join(expressions)


def letters(ranges: str) -> str:
    """The class of characters from first to last, given in hexadecimal as `41-5A B5`."""
    parts = (part.split("-") for part in ranges.split())
    return f"[{''.join('-'.join(chr(int(end, 16)) for end in part) for part in parts)}]"


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # bytes as letters; nothing is cut
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # after it has cut as GPT-2 does
ALONE, TOGETHER = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Digits(individual_digits=False)

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD, MARKED_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
DIGIT, DIGITS = r"\p{N}", r"\p{N}{1,3}"
SIGNS, PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
MARKED_SIGNS = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
SPACES = one_of(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")
GPT4 = one_of(CONTRACTION, WORD, DIGITS, SIGNS, SPACES)
# GPT-4o and Tekken also cut where a lower-case letter is followed by a capital.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SMALL, CAPITALS = (rf"[^\r\n\p{{L}}\p{{N}}]?{shape}" for shape in (f"{UPPER}*{LOWER}+", f"{UPPER}+{LOWER}*"))

# DeepSeek's first vocabulary takes these for letters: those with a case, but for Armenian and Georgian small ones.
CASED = letters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C "
    "38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B "
    "1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 "
    "1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 "
    "2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B "
    "2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 "
    "FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF "
    "1E900-1E943"
)
PUNCTUATION = letters("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
HAN, HAN_AND_KANA = letters("4E00-9FA5 800-4E00 AC00-D7FF") + "+", letters("4E00-9FA5 3040-309F 30A0-30FF") + "+"
DEEPSEEK3 = one_of(
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    SPACES,
)

# By llama.cpp's names. Digits stand alone in smollm; converters that drop this get numbers wrong.
ROWS = {
    "gpt-2 phi-2": Cut((GPT2,)),
    "olmo mpt": Cut((GPT2,), compose=True),  # GPT-NeoX's, which OLMoE and Mamba have, too
    "smollm starcoder refact": Cut((ALONE, GPT2)),
    "llama-bpe llama3 llama-v3": Cut((GPT4, BYTES), whole=True, begins=True),
    "dbrx smaug-bpe": Cut((GPT4, BYTES)),
    "qwen2 deepseek-r1-qwen": Cut((one_of(CONTRACTION, WORD, DIGIT, SIGNS, SPACES), BYTES), compose=True),
    "qwen35": Cut((one_of(CONTRACTION, MARKED_WORD, DIGIT, MARKED_SIGNS, SPACES), BYTES), compose=True),
    "gpt-4o": Cut((one_of(f"{SMALL}{CONTRACTION}?", f"{CAPITALS}{CONTRACTION}?", DIGITS, PATHS, SPACES), BYTES)),
    "tekken": Cut((one_of(SMALL, CAPITALS, DIGIT, PATHS, SPACES), BYTES), whole=True, begins=True),
    "deepseek-llm": Cut((r"[\r\n]", rf"\s?{CASED}+", rf"\s?{PUNCTUATION}+", r"\s+$", HAN, ALONE, BYTES)),
    "deepseek-coder": Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, ALONE, BYTES)),
    "deepseek-v3": Cut((DIGITS, HAN_AND_KANA, DEEPSEEK3, BYTES)),
    "falcon": Cut((pre_tokenizers.Punctuation("contiguous"), GPT2, TOGETHER, "[0-9][0-9][0-9]")),
}
PRE_TOKENIZERS = {name: cut for names, cut in ROWS.items() for name in names.split()}


# Steps that make a text longer than it is: other letters for its bytes, and a table in which U+FDFA becomes 18.
LONGER = {"ByteLevel": 2, "Precompiled": 18}


def name_of(library: Tokenizer) -> str | None:
    """The first name of the way in which a tokenizer cuts; None if there is none."""
    found = described(library)
    for name, cut in PRE_TOKENIZERS.items():
        other = Tokenizer(models.BPE(ignore_merges=cut.whole))
        cut.apply(other)
        if described(other) == found:
            return name
    return None


def described(library: Tokenizer) -> tuple[list[Any], list[Any], bool]:
    """The steps of a tokenizer in front of its merges, and whether tokens stay whole; equal if they do the same."""
    normalizer, steps = flat(library.normalizer, "normalizers"), flat(library.pre_tokenizer, "pretokenizers")
    return normalizer, steps, library.model.ignore_merges


def growth(library: Tokenizer) -> int:
    """How many times as long as a text it can be on its way through the library, about."""
    parts = {"normalizers": library.normalizer, "pretokenizers": library.pre_tokenizer, "decoders": library.decoder}
    steps = [step for several, part in parts.items() for step in flat(part, several)]
    return math.prod(LONGER.get(step["type"]) or len(step.get("content", "")) or 1 for step in steps)


def flat(part: Any, several: str) -> list[Any]:
    """The steps of a part of the library's tokenizer, without what changes no token."""
    return [] if part is None else flattened(json.loads(part.__getstate__()), several)


def flattened(step: dict[str, Any], several: str) -> list[Any]:
    """A step, or those of a sequence."""
    if step["type"] == "Sequence":
        return [inner for one in step[several] for inner in flattened(one, several)]
    if step["type"] == "Split" and "Regex" in step["pattern"]:  # line breaks may stand there as such
        expression = step["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n")
        step = step | {"pattern": {"Regex": expression}}
    return [{key: value for key, value in step.items() if key != "trim_offsets"}]
