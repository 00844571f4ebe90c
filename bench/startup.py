"""How long a user waits before anything happens: `python -m bench.startup --peers`.

Each is a command in a fresh process, from its start to its end: `--help`, an import, a model loaded, and a first
token. Cold, nothing has been compiled before; warm, the same command ran once. The files themselves were read
before, so a disk is not measured. With --peers transformers gives its first token of the same model, too, whose
folder both can read. Prints a table and writes results/startup.json.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from minillm.checkpoint.pull import pulled
from minillm.errors import UserError
from minillm.folders import bundled_models, model_folder

from .peers import MODEL, PEER_PACKAGES, require_peers
from .report import ratio, rounded, show_table, span, table, where_and_what, write
from .timing import rotated, wait_for_quiet

BUNDLED = "tiny-transformer"
PROMPT = "Recipe: Tomato Soup"
TRANSFORMERS = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model.generate(torch.tensor([[1, 5, 6, 7]]), max_new_tokens=1, do_sample=False)
"""


class Start(NamedTuple):
    """What Python is asked for; `again` has it run twice, first with nothing compiled, and timed both times."""

    arguments: list[str]
    again: bool = False


def generate(model: str) -> list[str]:
    """One token at the command line."""
    return ["-m", "minillm", "generate", "--model", model, "--temperature", "0", "--max-tokens", "1", PROMPT]


OURS = {
    "python alone": Start(["-c", "pass"]),
    "import jax": Start(["-c", "import jax"]),
    "import minillm": Start(["-c", "import minillm"]),
    "minillm --help": Start(["-m", "minillm", "--help"]),
}
OURS |= {
    f"load {name}": Start(["-c", f"import minillm; minillm.load({name!r}).model"]) for name in (BUNDLED, MODEL)
}
OURS |= {f"first token, {name}": Start(generate(name), again=True) for name in (BUNDLED, MODEL)}
PEER = f"first token, {BUNDLED}, transformers"
PEERS = {PEER: Start(["-c", TRANSFORMERS, str(bundled_models()[BUNDLED])])}
PAIRS = [("minillm --help", "import jax")]
PAIRS += [(f"first token, {name}, warm", f"first token, {name}, cold") for name in (BUNDLED, MODEL)]
PAIRS += [(f"first token, {BUNDLED}, {how}", PEER) for how in ("warm", "cold")]


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="With transformers.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Times each is started.")
def main(peers: bool, rounds: int) -> None:
    try:
        if peers:
            require_peers()
        report = measure(OURS | (PEERS if peers else {}), rounds)
    except UserError as error:
        sys.exit(f"bench.startup: {error}")
    report |= where_and_what(*(PEER_PACKAGES if peers else ()))
    show_table(report["table"])
    write("startup", report)


def measure(starts: dict[str, Start], rounds: int) -> dict[str, Any]:
    """Start everything so many times, and report on it."""
    played = []
    for number in range(rounds + 1):
        turns: dict[str, float] = {}
        for name in rotated([*starts], number):
            turns |= started(name, starts[name])
        played += [turns] if number else []  # the first one reads files from the disk
    names = [
        f"{name}{how}" for name, start in starts.items() for how in ((", cold", ", warm") if start.again else ("",))
    ]
    seconds = {name: [turns[name] for turns in played] for name in names}
    pairs = [pair for pair in PAIRS if {*pair} <= seconds.keys()]
    return {
        "times_as_fast": {
            f"{one} over {other}": ratio(np.array(seconds[other]) / np.array(seconds[one])) for one, other in pairs
        },
        "seconds": {name: rounded(statistics.median(found)) for name, found in seconds.items()},
        "table": table(
            ("", "seconds", "quartiles"),
            [
                (name, f"{statistics.median(found):.2f}", span(np.percentile(found, (25, 75)).tolist(), 2))
                for name, found in seconds.items()
            ],
        ),
        "sizes": sizes(),
        "setting": {"rounds": rounds, "prompt": PROMPT},
    }


def sizes() -> dict[str, float]:
    """What has to be there: minillm with all it needs, and a model."""
    installed = sum(bytes_of(distribution(name)) for name in needed("minillm"))
    return {
        "installed with JAX, GB": rounded(installed / 1e9),
        f"{MODEL} on disk, MB": rounded(pulled(MODEL).stat().st_size / 1e6),
    }


def needed(package: str) -> set[str]:
    """A package and all that it requires, extras left out."""
    names, rest = set(), [package]
    while rest:
        names.add(name := rest.pop())
        wanted = (
            re.split(r"[^\w.-]", one)[0].lower() for one in distribution(name).requires or () if ";" not in one
        )
        rest += {one for one in wanted if one not in names}
    return names


def bytes_of(package: Distribution) -> int:
    """Of a package's files."""
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def started(name: str, start: Start) -> dict[str, float]:
    """The seconds of a turn, by what they are of; programs that it compiles are nobody else's."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(model_folder().resolve())
        environment = os.environ | {"MINILLM_CACHE": folder}
        if not start.again:
            return {name: seconds_of(start, environment)}
        return {f"{name}, {how}": seconds_of(start, environment) for how in ("cold", "warm")}


def seconds_of(start: Start, environment: dict[str, str]) -> float:
    """From the start of a process to its end; what it wrote is the error if it fails."""
    wait_for_quiet()
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *start.arguments], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise UserError(f"{' '.join(start.arguments[:3])} exited with {done.returncode}: {done.stderr[-400:]}")
    return seconds


if __name__ == "__main__":
    main()
