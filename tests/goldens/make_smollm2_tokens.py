"""Writes smollm2_tokens.json: how llama.cpp, which has its own pre-tokenizer for SmolLM, cuts odd strings.

    python tests/goldens/make_smollm2_tokens.py PATH/smollm2-135m.gguf     (needs the `oracle` extra)

The strings are drawn from a list of kinds, each a place where tokenizers have been seen to differ.
"""

import hashlib
import json
import random
import sys
import urllib.request
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

SEED, PER_KIND = 0, 29

WORDS = """the of river Stone can't naïve Straße ångström don't E=mc² self-made I'LL we've snake_case x86_64 O'Neill
Ελλάδα Москва देवनागरी ไทย Việt façade coöperate Ünïcödé ﬁnance ½ ² ⅷ ٣٤ 一二三 ١٢٣ Ⅻ mRNA iPhone15 ok…""".split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680", "\u2003"]
SPACES += ["\u2009", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\u2060", "    "]
MARKS = [chr(i) for i in (0x300, 0x301, 0x303, 0x308, 0x323, 0x327, 0x338, 0x20D7, 0xFE0F, 0x93F, 0x94D, 0xE34)]
EMOJI = "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 🇯🇵🇧🇷 ❤️ ☺ 1️⃣ 🧑🏿‍🚀 🫠 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ♟︎ ™ 🤷‍♀️".split()
CJK = (
    "漢字と仮名交じり文。カタカナ、ひらがな！「引用」中文標點，数字１２３；한국어 문장입니다. ｈａｌｆ ㈱ 㐀 𠮷野家"
)
RTL = "العَرَبِيَّة مرحبا بالعالم، ١٢٣٤؟ עִבְרִית שלום עולם \u200f\u202aמעורב abc 12\u202c لا إله ﷺ"
CODE = [
    "def f(x): return x**2",
    "for (int i=0;i<10;++i) {",
    "\tif a!=b and c>=0x1F:",
    "</div><!-- -->",
    "SELECT * FROM t WHERE id='7';",
    "#include <vector>",
    "let y = &mut x[..3];",
    '$ grep -rn "a\\b" . | wc -l',
    '{"k": [1, 2.5e-3, null]}',
    "=>->::<=>&&||",
    "@decorator\n    pass\n\n\n\treturn",
    'print(f"{x:>10.3f}")',
    "λx.x",
    "/* fix */",
    "~/.bashrc",
    "%d%%\\x00\\n",
]
URLS = [
    "https://example.org/a/b?c=1&d=%20e#frag",
    "http://127.0.0.1:8080",
    "mailto:a.b+c@mail.example",
    "C:\\dir\\f.txt",
]
SPECIALS = (
    "<|im_start|> <|im_end|> <|endoftext|> <repo_name> <file_sep> <jupyter_code> <|im_start <|IM_END|> <|".split()
)
TAILS = ["s", "t", "re", "ve", "m", "ll", "d", "S", "T", "Re", "VE", "M", "lL", "D", "x", "", "1"]


def number(rng: random.Random) -> str:
    digits = str(rng.randrange(10 ** rng.randint(1, 14)))
    shapes = ["{}", " {}", "-{}", "{}.5", "$1,{}", "{}%", "{}th", "v{}", "0x{}", "{}e-7", "({})", "a{}b", "{} {}"]
    return rng.choice(shapes).format(digits, digits[::-1])


def accented(rng: random.Random) -> str:
    return "".join(letter + rng.choice(MARKS) * rng.randint(0, 2) for letter in rng.choices("aeoncAEs1 -ก", k=9))


def any_scalar(rng: random.Random) -> str:
    points = [*range(0x20, 0x2FF), *range(0x370, 0xD7FF, 7), *range(0xE000, 0xFFFF, 5), *range(0x10000, 0x1FFFF, 9)]
    return "".join(chr(rng.choice(points)) for _ in range(rng.randint(1, 12)))


def piece_of(text: str) -> Callable[[random.Random], str]:
    """A maker of substrings."""

    def cut(rng: random.Random) -> str:
        first = rng.randrange(len(text) - 1)
        return text[first : first + rng.randint(1, 24)]

    return cut


def joined(parts: Sequence[str], most: int, between: Sequence[str]) -> Callable[[random.Random], str]:
    """A maker of strings of up to `most` parts, with a separator after each."""
    return lambda rng: "".join(rng.choice(parts) + rng.choice(between) for _ in range(rng.randint(1, most)))


KINDS: list[Callable[[random.Random], str]] = [
    number,
    accented,
    any_scalar,
    piece_of(CJK),
    piece_of(RTL),
    joined(["0", "7", "42", "123", "2024", "3.14", "1,000"], 6, ["", " ", "  ", ", ", "\n", "x"]),
    joined([*WORDS, "17", "3.5"], 10, [" ", " ", ", ", ". ", "  "]),
    joined(WORDS, 4, SPACES),
    joined(SPACES, 8, ["", "", "a", "1", "!"]),
    joined([" ", "\n", "\t", "\r\n"], 9, ["", "", "", "x", "7"]),
    joined(EMOJI, 6, ["", " ", "a", "9", "\ufe0f", "\u200d"]),
    joined([*EMOJI, *WORDS], 6, [" ", ""]),
    joined(CODE, 3, ["\n", "\n    ", " ", ""]),
    joined([*URLS, "see"], 3, [" ", ", ", "\n"]),
    joined([*SPECIALS, "user", "a", "Hi there."], 6, ["", " ", "\n", "  "]),
    joined([chr(i) for i in (*range(32), 127, 0x80, 0x9F, 0xAD)], 8, ["", "a", " ", "0"]),
    joined(
        [f"{word}{mark}{tail}" for word in ("we", "IT", "ß", "") for mark in "'’" for tail in TAILS], 4, [" ", ""]
    ),
    joined(list("etaoinshrdluEÉñ"), 200, [""]),
    joined(["a", "Ab", "é", "字", "1", "!", "-", "\u0301", "x\u00a0"], 60, [""]),
    lambda rng: rng.choice(["a", "A", "0", " ", "\n", "=", "é", "字", "🙂", "ha", "!?"]) * rng.randint(9, 90),
    joined(list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"), 12, ["", "", " ", "q"]),
    joined(["\ufffd", "\uffff", "\U0010ffff", "\ue000", "\ufdd0", "ok"], 5, ["", " "]),
]


def strings() -> list[str]:
    """About 600 different strings, the same on every run."""
    rng = random.Random(SEED)
    return list(dict.fromkeys(["", *(kind(rng) for kind in KINDS for _ in range(PER_KIND))]))


def llama_cpp_tokens(gguf: str, texts: list[str]) -> list[list[int]]:
    """Token ids by llama.cpp, asked through its server, the one door to its tokenizer that xllamacpp has."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.warmup = gguf, 0, 256, False
    server = xllamacpp.Server(params)

    def ask(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{server.listening_address}/tokenize", body, headers)
        ) as r:
            return json.load(r)["tokens"]

    return [ask(text) for text in texts]


def main() -> None:
    gguf, texts = sys.argv[1], strings()
    provenance = {
        "script": Path(__file__).name,
        "seed": SEED,
        "xllamacpp": version("xllamacpp"),
        "gguf_sha256": hashlib.sha256(Path(gguf).read_bytes()).hexdigest(),
    }
    cases = [json.dumps(case) for case in zip(texts, llama_cpp_tokens(gguf, texts), strict=True)]
    lines = ",\n".join(cases)  # one case a line, so that a change shows
    text = f'{{"provenance": {json.dumps(provenance)},\n"cases": [\n{lines}\n]}}\n'
    Path(__file__).with_name("smollm2_tokens.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
