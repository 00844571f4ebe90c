"""`minillm validate`: judge a kernel against the definition of an op."""

import ctypes
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import UserError
from .terminal import interactive


@click.command("validate", short_help="Judge a kernel against an op's definition.")
@click.argument("kernel", required=False, metavar="[FILE.py:FUNCTION]")
@click.option(
    "--op",
    "op_name",
    metavar="NAME",
    required=True,
    help="The op it claims to be; `list` shows all.",
)
@click.option("--program", metavar="COMMAND", help="Judge a program instead: run as COMMAND IN.npz OUT.npz.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16.")
@click.option("--arrays", default=None, help="What it takes: jax (default), numpy, torch, cupy.")
@click.option("--jit", is_flag=True, help="Compile a JAX kernel before it is called.")
@click.option("--supports", multiple=True, metavar="NAME=V,V", help="What it can do: k=64,128 or causal=true.")
@click.option("--quick", is_flag=True, help="Stop after some seconds.")
@click.option("--only", metavar="TRIAL", help="Repeat one trial of an earlier report.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(kernel, op_name, program, dtype, arrays, jit, supports, quick, only, as_json) -> None:
    """Judge FUNCTION of FILE.py, any callable that takes an op's arrays, and exit with 1 if it is wrong. FILE.py
    is executed. The function is held to the op's float64 definition on many shapes, options and nasty inputs, and
    to laws that correct kernels obey. What it does not take (a missing keyword, or a value not in --supports) is
    reported as not covered.

    \b
    Examples:
      minillm validate my_kernels.py:flash --op attention --dtype bfloat16 --jit
      minillm validate my_kernels.py:flash --op attention --arrays torch --quick
      minillm validate --program ./flash --op attention
    """
    from .. import ops

    if op_name == "list":
        width = max(map(len, ops.judge.OPS))
        for name, op in ops.judge.OPS.items():
            click.echo(f"{name:{width}}  {ops.judge.signature_of(op)}")
            for line in op.recipe.splitlines():
                click.echo(f"{'':{width}}    {line}")
        return
    if jit and (program or arrays not in (None, "jax")):
        raise UserError("--jit compiles JAX kernels, expected neither --program nor other --arrays beside it")
    options = {"dtype": dtype, "quick": quick, "only": only, "supports": parse_supports(supports)}
    options["arrays"] = arrays or ("numpy" if program else "jax")
    try:
        with output_on_stderr():  # whatever a kernel prints is no part of the report
            function = find_kernel(kernel, program)
            function = ops.judge.compiled(function) if jit else function
            report = judge_with_bar(lambda progress: ops.validate(op_name, function, progress=progress, **options))
    except ops.judge.Interrupted as interruption:
        report = interruption.report
    except ValueError as error:
        raise UserError(str(error)) from None
    again = repeating(kernel, op_name, program, dtype, options["arrays"], jit, supports)
    report.failures = [replace(one, reproduce=shlex.join([*again, one.trial])) for one in report.failures]
    click.echo(report.to_json() if as_json else str(report))
    sys.exit(130 if report.interrupted else 0 if report.ok else 1)


def repeating(kernel, op_name, program, dtype, arrays, jit, supports) -> list[str]:
    """The command that repeats a trial, but for the trial."""
    judged = [kernel] if kernel else ["--program", program]
    declared = [part for text in supports for part in ("--supports", text)]
    options = ["--op", op_name, "--dtype", dtype, "--arrays", arrays, *(["--jit"] if jit else []), *declared]
    return ["minillm", "validate", *judged, *options, "--only"]


@contextmanager
def output_on_stderr() -> Iterator[None]:
    """Send to standard error what is meant for standard output, also that of C code and of other programs."""
    out, kept = sys.stdout, os.dup(1)
    out.flush()
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        out.flush()
        ctypes.CDLL(None).fflush(None)  # what C code has printed may still be on its way
        os.dup2(kept, 1)
        os.close(kept)


def judge_with_bar(judge: Callable[[Callable[[str, int, int], None] | None], Any]) -> Any:
    """Run `judge` with a progress bar if somebody is looking."""
    if not interactive():
        return judge(None)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("trials", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{what} {done} of {total}", completed=done, total=total)

        return judge(show)


def find_kernel(place: str | None, program: str | None) -> Callable:
    """The callable that the command line names. UserError if it names none, or both kinds."""
    from .. import ops

    if (place is None) == (program is None):
        raise UserError("kernel: expected either FILE.py:FUNCTION or --program COMMAND")
    if program is not None:
        return ops.judge.program(shlex.split(program))
    path, colon, name = (place or "").rpartition(":")
    if not colon:
        raise UserError(f"kernel is {place!r}, expected FILE.py:FUNCTION")
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist, expected FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"_judged_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; expected FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(Path(path).resolve().parent))  # for what stands beside it
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        raise UserError(f"{path} cannot be imported: {ops.judge.described(error)}") from None
    if not callable(function := getattr(module, name, None)):
        instead = f", only a value of type {type(function).__name__}" if hasattr(module, name) else ""
        raise UserError(f"{path} has no function {name!r}{instead}")
    return function


def parse_supports(texts: Iterable[str]) -> dict[str, tuple]:
    """`k=64,128` and `k=256` -> {"k": (64, 128, 256)}."""
    supports: dict[str, tuple] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not name or not equals or not values:
            raise UserError(f"--supports is {text!r}, expected NAME=VALUE,VALUE such as k=64,128")
        supports[name] = (*supports.get(name, ()), *map(value_of, values.split(",")))
    return supports


def value_of(text: str) -> Any:
    """A number, true, false or null as JSON reads it, or as Python writes it; else the word itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text
