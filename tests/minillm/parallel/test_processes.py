"""Several real processes: they generate what one does, each reads its own pieces, and they end together."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import files
import jax
import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
import numpy as np
import pytest
from click.testing import CliRunner
from jax.sharding import AbstractMesh
from safetensors.numpy import load_file

import minillm
from minillm.blocks.params import stacked
from minillm.cli import main
from minillm.errors import UserError
from minillm.lm import find_model
from minillm.model import Model
from minillm.parallel import local
from minillm.parallel.distributed import Line, answered, called

PROMPT, N = "Recipe: Tomato Soup", 12
NUMBERS = ("--coordinator", "--num-processes", "--process-id")

# `minillm`, which says at the end how many numbers it has read from files.
COUNTING = """
import sys
from minillm.checkpoint.safetensors import Safetensors
from minillm.cli import main

read, sizes = Safetensors.read, []

def counted(self, name, index=()):
    found = read(self, name, index)
    sizes.append(found.size)
    return found

Safetensors.read = counted
main(standalone_mode=False)
print(sum(sizes), file=sys.stderr)
"""

# A process that joins others, and then all add up for ever; it tells when the first sum is there.
ADDING = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from minillm.parallel import distributed

distributed.SILENCE = float(sys.argv[1])
with distributed.join(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), {}):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P(), out_specs=P()))
    assert add(np.ones(1, np.float32)).item() == int(sys.argv[3])
    print("adding", file=sys.stderr, flush=True)
    while True:
        add(np.ones(1, np.float32)).item()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def processes(script: str, n: int, *words: str, names: Sequence[str] = ("", "", "")) -> Iterator[list[Any]]:
    """n processes of a script, each with the numbers of the job; none is left at the end."""
    coordinator, started = f"127.0.0.1:{free_port()}", []
    for i in range(n):
        numbers = [word for pair in zip(names, (coordinator, str(n), str(i)), strict=True) for word in pair if word]
        command = [sys.executable, "-c", script, *words, *numbers]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()


def sizes_of_pieces(lm: minillm.LM, mesh: AbstractMesh) -> int:
    """How many numbers one device of the mesh holds."""
    share = Model.build(local(lm.config, mesh), lambda name, layer, *shapes, init: stacked(shapes))
    return sum(leaf.size for leaf in jax.tree.leaves(share))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Tiny-transformer, of whose six layers only the first is left: every process compiles it."""
    source, folder = find_model("tiny-transformer"), tmp_path_factory.mktemp("shallow")
    config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": 1}
    tensors = load_file(source / "model.safetensors")
    first = {name: array for name, array in tensors.items() if not re.search(r"layers\.[1-5]\.", name)}
    shutil.copy(source / "tokenizer.model", folder)
    return files.write_folder(folder, config, first)


@pytest.mark.parametrize(
    ("axes", "recipe"),
    [
        ({"model": 2}, None),
        pytest.param({"seq": 2, "model": 2}, None, marks=pytest.mark.slow),
        pytest.param({"model": 2}, "w8a8", marks=pytest.mark.slow),
    ],
    ids=["two processes", "four processes", "few bits"],
)
def test_processes_generate_the_tokens_of_one_read_their_pieces_and_the_first_prints(axes, recipe, model):
    mesh, n = ",".join(f"{axis}={size}" for axis, size in axes.items()), int(np.prod([*axes.values()]))
    words = ["generate", PROMPT, "--model", str(model), "--mesh", mesh, "--max-tokens", str(N)]
    words += ["--temperature", "0", "--json"]
    words += ["--quant", recipe] if recipe else []
    with processes(COUNTING, n, *words, names=NUMBERS) as started:
        outputs = [one.communicate(timeout=300) for one in started]
    lm = minillm.load(model)
    one = lm.quantize(recipe)[0] if recipe else lm
    alone = one.generate(PROMPT, max_tokens=N, temperature=0)
    assert [one.returncode for one in started] == [0] * n, outputs
    assert json.loads(outputs[0][0])["tokens"] == alone.tokens
    assert [out for out, _ in outputs[1:]] == [""] * (n - 1)
    pieces = sizes_of_pieces(lm, AbstractMesh(tuple(axes.values()), tuple(axes)))
    assert [int(err.split()[-1]) for _, err in outputs] == [pieces] * n
    assert pieces < 0.51 * sum(leaf.size for leaf in jax.tree.leaves(lm.model))


@pytest.mark.parametrize(
    ("victim", "by"),
    [(1, signal.SIGKILL), (0, signal.SIGTERM), pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow)],
    ids=["killed", "the first one terminated", "frozen"],
)
def test_a_process_that_dies_ends_the_job_and_the_others_say_which_it_was(victim, by):
    with processes(ADDING, 2, "5" if by == signal.SIGSTOP else "60") as started:
        assert [one.stderr.readline() for one in started] == ["adding\n"] * 2
        started[victim].send_signal(by)
        left = started[1 - victim]
        _, err = left.communicate(timeout=30)
    assert left.returncode == 1
    assert err.splitlines()[-1] == f"minillm: process {victim} of 2 has gone, so the job ends"


@pytest.mark.parametrize("where", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ctrl_c_in_one_process_ends_all_without_a_word(where):
    with processes(ADDING, 2, "60") as started:
        assert [one.stderr.readline() for one in started] == ["adding\n"] * 2
        started[where].send_signal(signal.SIGINT)
        ended = [one.communicate(timeout=30) for one in started]
    assert [one.returncode for one in started] == [130, 130]
    assert ended == [("", "")] * 2


GOOD = {"--coordinator": "127.0.0.1:1", "--num-processes": "2", "--process-id": "1", "--mesh": "model=2"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"--process-id": "2"}, "--process-id is 2, expected 0 to 1 with --num-processes 2"),
        ({"--process-id": None}, "without --process-id, expected all of"),
        ({"--mesh": None}, "--mesh is missing"),
        ({"--mesh": "model=4"}, "--mesh model=4 has 4 devices, but --num-processes is 2"),
        ({"--num-processes": "1", "--mesh": "model=1"}, "--num-processes is 1, expected 2 or more"),
        ({"--coordinator": "localhost"}, "--coordinator is 'localhost', expected HOST:PORT"),
        ({"--draft": "ngram"}, "--draft does not go with --coordinator"),
        ({"--input": "x.jsonl", "PROMPT": None}, "--input does not go with --coordinator"),
        ({"PROMPT": None}, "PROMPT is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_numbers_are_one_sentence(changed, says):
    options = {"PROMPT": PROMPT, **GOOD, **changed}
    prompt = options.pop("PROMPT")
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    run = CliRunner().invoke(main, ["generate", *([prompt] if prompt else []), *words])
    assert (run.exit_code, len(run.stderr.splitlines())) == (2, 1)
    assert says in run.stderr


def met(*others: dict) -> list[Any]:
    """What comes of process 0 of three, and of others who say such things: answers by process, or errors."""
    port, hello = free_port(), {"process": 0, "of": 3, "asked": {"--max-tokens": "5", "PROMPT": "x"}}

    def first() -> Any:
        try:
            lines = answered("127.0.0.1", port, hello)
        except UserError as error:
            return str(error)
        for other, line in lines.items():
            line.say(you=other)
            line.close()
        return sorted(lines)

    def other(said: dict) -> Any:
        try:
            line, answer = called("127.0.0.1", port, hello | said)
        except UserError as error:
            return str(error)
        line.close()
        return answer

    with ThreadPoolExecutor(len(others) + 1) as pool:
        return [one.result() for one in [pool.submit(first), *(pool.submit(other, said) for said in others)]]


def test_processes_find_each_other():
    assert met({"process": 2}, {"process": 1}) == [[1, 2], {"you": 2}, {"you": 1}]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"process": 1, "of": 2}, "process 1 has --num-processes 2, but process 0 has 3; give all the same"),
        ({"process": 0}, "--process-id 0 was given to two processes, expected each of 0 to 2 once"),
        (
            {"process": 1, "asked": {"--max-tokens": "6", "PROMPT": "x"}},
            "process 1 has another --max-tokens than process 0; give all the same",
        ),
    ],
    ids=["number of processes", "same process twice", "other options"],
)
def test_processes_that_were_asked_for_different_things_are_told_so_on_both_sides(other, says):
    assert met(other) == [says, says]


def test_a_stranger_on_the_line_is_not_a_process():
    port, hello = free_port(), {"process": 0, "of": 2, "asked": {}}

    def stranger() -> socket.socket:
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port))
            except ConnectionRefusedError:
                continue

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answered, "127.0.0.1", port, hello)
        with stranger() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            line = Line(socket.create_connection(("127.0.0.1", port)))
            line.say(process=1, of=2, asked={})
            lines = first.result()
    line.close()
    assert list(lines) == [1]
    lines[1].close()
