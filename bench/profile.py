"""Where the time goes when a prompt is read and a text decoded: `python -m bench.profile --peers`.

What our programs do in a step is in XLA's own trace: for how long a product runs, for how long only something else,
for how long nothing. While products run, weights pass at so many bytes a second, and operations are done at so many
a second: whether it is products that are slow, or what is between them. Beside peers, Linux's `perf` looks a
thousand times a second at what each thread is doing; shares are of the work of all threads, and how many cores were
busy with it stands beside. Writes results/profile.json; how fast anybody is, that is for `bench.decode` to say, and
this says why.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.pull import pulled
from minillm.errors import UserError
from minillm.xla import memory_bandwidth

from . import operations
from .decode import LLAMA_CPP, OURS, TASKS, TEXT, TRANSFORMERS, Task, parameters, prompts_of
from .peers import MODEL, PEER_PACKAGES, open_minillm, require_peers
from .report import rounded, show_table, table, where_and_what, write
from .timing import Contestant

RATE = 997  # samples of a thread a second
ATTACH = 1.0  # seconds that perf takes to be there
PROFILED = {"one text": replace(TASKS["one text"], n=192), "a prompt of 512": TASKS["a prompt of 512"]}
PEERS = {who: (TRANSFORMERS | LLAMA_CPP)[who] for who in ("transformers", "llama.cpp F32", "llama.cpp Q4_1")}
BYTES = {"minillm": 4, "minillm w8a8": 1}  # of a weight
# What a function is for, by words in its name or its library's; the first that fits.
KINDS = {
    "rearranging": re.compile(r"transpose|pack|gemm_\w*copy", re.IGNORECASE),
    "products": re.compile(r"dot_|gemm|gemv|gebp|vec_dot|mul_mat|sbgemm|tinyBLAS", re.IGNORECASE),
    "waiting": re.compile(r"libgomp|barrier|sched_yield|WaitForWork|spin|poll", re.IGNORECASE),
    "generated": re.compile(
        r"^perf-\d+\.map"
    ),  # compiled while it ran: XLA's loops, products of few rows among them
}
REST = "the rest"


class Sample(NamedTuple):
    """A thread at a moment, in seconds, in a function of a library."""

    thread: int
    when: float
    function: str
    library: str


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Profile transformers and llama.cpp, too.")
def main(peers: bool) -> None:
    try:
        if shutil.which("perf") is None:
            raise UserError("there is no perf; install it (package linux-perf or linux-tools)")
        if peers:
            require_peers()
        report = measure(peers)
    except UserError as error:
        sys.exit(f"bench.profile: {error}")
    show_table(report["table"], width=200)
    write("profile", report)


def measure(peers: bool) -> dict[str, Any]:
    """Profile every contestant at every task."""
    checkpoint = open_checkpoint(pulled(MODEL))
    tokenizer, config, size = checkpoint.tokenizer(), checkpoint.config, parameters(None)
    assert tokenizer is not None  # this model has one
    text, tasks = tokenizer.encode(TEXT), {}
    players = {who: partial(open_minillm, recipe) for who, recipe in OURS.items()} | (PEERS if peers else {})
    for name, task in PROFILED.items():
        tasks[name] = {who: profiled(opened, task, text) for who, opened in players.items()}
        for who, recipe in OURS.items():
            found = traced(recipe, task, text)
            seconds = found["ms"]["products"] * found["runs"] / 1e3
            if task.n:
                found["GB/s of products"] = rounded(BYTES[who] * size * found["runs"] / seconds / 1e9)
            else:
                found["GFLOP/s of products"] = rounded(
                    2 * (size - config.v * config.d) * task.length / seconds / 1e9
                )
            tasks[name][who]["trace"] = found
    return {
        "tasks": tasks,
        "memory_bandwidth_gb_s": rounded(memory_bandwidth() / 1e9),
        "setting": {"model": MODEL, "samples_a_second": RATE, "parameters": size},
        **where_and_what(*(PEER_PACKAGES if peers else ())),
        "table": table_of(tasks),
    }


def traced(recipe: str | None, task: Task, text: list[int]) -> dict[str, Any]:
    """What our programs did in a turn."""
    prompts = prompts_of(task, text, 0)
    with Contestant(partial(operations.open_traced, recipe), (prompts, task.n and 8)) as one:
        return operations.summary(one.decode(prompts, task.n).tokens)


def profiled(opened: Any, task: Task, text: list[int]) -> dict[str, Any]:
    """What a contestant did in a turn."""
    prompts = prompts_of(task, text, 0)
    with Contestant(opened, (prompts, task.n and 8)) as one, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "perf.data"
        record = ["perf", "record", "-q", "-F", str(RATE), "-p", str(one.process.pid), "-o", str(path)]
        perf = subprocess.Popen(record, stderr=subprocess.PIPE, text=True)
        time.sleep(ATTACH)
        turn = one.decode(prompts, task.n, tries=1)
        perf.send_signal(signal.SIGINT)
        _, said = perf.communicate()
        script = ["perf", "script", "-i", str(path), "-F", "tid,time,ip,sym,dso"]
        samples = [*samples_in(subprocess.run(script, capture_output=True, text=True).stdout)]
    if not samples:
        raise UserError(f"perf saw nothing: {said.strip()}; expected leave to look at processes of one's own")
    speed = {"tokens_per_second": rounded(task.tokens / turn.seconds)}
    return speed | summary(samples)


def samples_in(script: str) -> Iterable[Sample]:
    """What `perf script` prints: thread, time, address, function, and its library in brackets."""
    for line in script.splitlines():
        found = re.match(r"\s*(\d+)\s+([\d.]+):\s+[0-9a-f]+ (.*) \((.*)\)$", line)
        if found:
            thread, when, function, library = found.groups()
            yield Sample(int(thread), float(when), function, library.rpartition("/")[2])


def kind_of(sample: Sample) -> str:
    where = f"{sample.library} {sample.function}"
    return next((kind for kind, words in KINDS.items() if words.search(where)), REST)


def summary(samples: list[Sample]) -> dict[str, Any]:
    """Shares of the work by kind, by thread, and of the functions that took most; how many cores were busy."""
    moments = [sample.when for sample in samples]
    kinds = Counter(map(kind_of, samples))
    threads = Counter(sample.thread for sample in samples)
    functions = Counter(sample.function for sample in samples if kind_of(sample) != "generated")
    return {
        "shares": {kind: rounded(kinds[kind] / len(samples)) for kind in (*KINDS, REST)},
        "cores_busy": rounded(len(samples) / RATE / (max(moments) - min(moments))),
        "threads": [rounded(count / len(samples)) for _, count in threads.most_common(4)],
        "functions": {name: rounded(count / len(samples)) for name, count in functions.most_common(5)},
        "samples": len(samples),
    }


def table_of(tasks: dict[str, Any]) -> dict[str, Any]:
    """A line a contestant and task."""
    lines = []
    for task, found in tasks.items():
        for who, one in found.items():
            shares = [f"{share:.0%}" for share in one["shares"].values()]
            busy, (name, share) = f"{one['cores_busy']:.2f}", next(iter(one["functions"].items()))
            lines.append((task, who, *shares, busy, f"{name} ({share:.0%})", steps(one.get("trace"))))
    columns = ("task", "who", *KINDS, REST, "cores busy", "most of it in", "a step, by XLA's trace")
    return table(columns, lines)


def steps(trace: dict[str, Any] | None) -> str:
    """What a trace says of a run of the program."""
    if trace is None:
        return "–"
    counts, (what, speed) = trace["operations"], list(trace.items())[-1]
    products, others, nothing = trace["ms"].values()
    return (
        f"{products:.1f} ms {counts['products']:.0f} products at {speed:.0f} {what.partition(' ')[0]}, "
        f"{others:.1f} ms only {counts['others']:.0f} others, {nothing:.1f} ms nothing"
    )


if __name__ == "__main__":
    main()
