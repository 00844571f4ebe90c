"""`minillm compile`: what a model needs and could do on devices that are not there."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from ..folders import whole
from .completion import ModelName
from .terminal import printable, status

if TYPE_CHECKING:
    from ..compile.aot import Program
    from ..compile.plan import Plan
    from ..compile.steps import Work
    from ..config import Config
    from ..model import Model

USUAL = 4096  # tokens of a sequence, unless told
HERE, DTYPE = "cpu", "bfloat16"


@click.command("compile", short_help="Plan and compile a model for devices that are not there.")
@click.argument("model", type=ModelName(), metavar="MODEL|CONFIG.json")
@click.option("--target", required=True, help="tpu-v5e, tpu-v5p, tpu-v6e, h100, a100 or b200; cpu with --export.")
@click.option("--mesh", metavar="AXIS=N,…", help="Spread it over devices: data=2,model=4.")
@click.option(
    "--batch", metavar="N", default=1, show_default=True, type=click.IntRange(1, 1 << 16), help="Sequences at once."
)
@click.option(
    "--context", metavar="N", type=click.IntRange(2, 1 << 21), help=f"Tokens of each; else {USUAL}, or fewer."
)
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: int8, int4-g32 …; else bfloat16.")
@click.option("--price", type=click.FloatRange(0, min_open=True), help="Dollars that a device costs an hour.")
@click.option("--plan", "plan_only", is_flag=True, help="Arithmetic only: compile nothing.")
@click.option("--hlo", type=click.Path(path_type=Path), help="Write the compiled programs as text.")
@click.option("--export", "target_file", type=click.Path(path_type=Path), help="Write what runs without minillm.")
def command(
    model: str,
    target: str,
    mesh: str | None,
    batch: int,
    context: int | None,
    quant: str | None,
    price: float | None,
    plan_only: bool,
    hlo: Path | None,
    target_file: Path | None,
) -> None:
    """Compile MODEL's prefill and decode step for a TPU or GPU that need not be there, and say what they would need
    and the most they could do. A config.json is enough; weights are read for --export only.

    \b
    Examples:
      minillm compile smollm2-135m --target tpu-v5e
      minillm compile config.json --target h100 --mesh model=8 --price 2.5
      minillm compile tiny-transformer --target cpu --export tiny.zip
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # what is compiled for is never used, even if it is there
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it is no news that there is no GPU
    for file in (hlo, target_file):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file.parent}: no such folder for {file.name}; make it first")
    if target_file is not None:
        check_export(model, mesh)
    config, shapes = opened(model)
    work = work_of(config, batch, context)
    if target == HERE:
        if target_file is None:
            raise UserError("--target cpu is there to --export for; give --export FILE, or another target")
        for name, given in {"--price": price, "--plan": plan_only, "--hlo": hlo}.items():
            if given:
                raise UserError(f"{name} does not go with --target cpu, which is not planned for; leave it out")
    else:
        show_plan(model, config, shapes, work, target, mesh, quant, price, plan_only, hlo)
    if target_file is not None:
        write_export(model, quant, work, target, target_file)


def opened(model: str) -> "tuple[Config, Model]":
    """The config and shapes of a checkpoint, or of a config.json alone."""
    from ..compile.steps import config_in, shapes_of

    if model.endswith(".json"):
        config = config_in(Path(model))
        return config, shapes_of(config)
    from ..checkpoint.loader import open_checkpoint
    from ..lm import find_model

    checkpoint = open_checkpoint(find_model(model))
    return checkpoint.config, checkpoint.shapes()


def work_of(config: "Config", batch: int, context: int | None) -> "Work":
    """How much is asked of the model; UserError if it has no positions for so many tokens."""
    from ..compile.steps import Work

    if config.learned_positions and (context or 0) > config.context:
        raise UserError(f"--context is {context}, but the model has positions for {config.context} tokens only")
    return Work(batch, context or min(config.context, USUAL))


def show_plan(
    model: str,
    config: "Config",
    shapes: "Model",
    work: "Work",
    target: str,
    mesh: str | None,
    quant: str | None,
    price: float | None,
    plan_only: bool,
    hlo: Path | None,
) -> None:
    """Plan and compile, and print what came of it."""
    from ..compile.aot import compile_step
    from ..compile.devices import device_named
    from ..compile.plan import plan
    from ..compile.steps import in_few_bits, narrowed, on_devices
    from ..compile.topology import can_compile, extra

    device = device_named(target)
    compiles = can_compile(device) and not plan_only
    if hlo is not None and not compiles:
        how = "leave --plan out" if plan_only else f"pip install {extra(device)}"
        raise UserError(f"--hlo is written from programs that were compiled; {how}")
    few = narrowed(shapes if quant is None else in_few_bits(shapes, quant), DTYPE)
    programs = {}
    with status(f"planning {model} for {target}") as say:
        lying, devices, place = on_devices(few, config, target, mesh, compiles)
        made = plan(model, lying, work, device, devices, place)
        for name, program in made.programs.items() if compiles else ():
            say(f"compiling the {name} program of {model} for {target}")
            programs[name] = compile_step(model, name, program, made)
    lines = [*header(model, config, shapes, made, mesh, quant), *table(made, programs), ""]
    lines += [*bounds(made, price), "", *assumptions(config, made, work, price)]
    click.echo(printable("\n".join(lines)))
    if not compiles and not plan_only:
        click.echo(f"Nothing was compiled: that needs pip install {extra(device)}")
    if hlo is not None:
        write(hlo, "\n".join(f"// {name}\n{program.hlo}" for name, program in programs.items()))


def header(
    model: str, config: "Config", shapes: "Model", made: "Plan", mesh: str | None, quant: str | None
) -> Iterator[str]:
    """What is planned, and what each device holds of it."""
    from ..compile.plan import size

    work, many = made.work, f"{made.devices} x {made.device.name} ({mesh})" if mesh else made.device.name
    kind = DTYPE if quant is None else f"{quant}, else {DTYPE}"
    yield f"{model}: {config.arch}, {len(config.layers)} layers, {amount(parameters(shapes))} parameters"
    yield f"{work.batch} x {work.context:,} tokens on {many}, {kind}"
    yield ""
    share = 100 * (made.weights + made.state) / made.device.memory
    yield f"each device holds  {size(made.weights)} of weights and {size(made.state)} of memory,"
    yield f"                   {share:.3g} % of its {size(made.device.memory)}"
    yield ""


def parameters(shapes: "Model") -> int:
    """How many numbers a model is made of."""
    import jax

    from ..quant import by_place, is_weight

    dense = jax.jit(lambda weight: weight.dense())  # for its shape only; traced once for layers that are alike
    leaves = by_place(shapes)[0]
    return sum((jax.eval_shape(dense, leaf) if is_weight(leaf) else leaf).size for _, leaf in leaves)


def table(made: "Plan", programs: "dict[str, Program]") -> Iterator[str]:
    """The two programs side by side."""
    from ..compile.plan import roofline, size

    costs = {"prefill": made.prefill, "decode": made.decode}
    times = {name: roofline(cost, made.device) for name, cost in costs.items()}
    rows: dict[str, Callable[[str], str]] = {
        "": lambda name: f"{name}, {made.work.batch} x {made.work.chunk if name == 'prefill' else 1}",
        "operations": lambda name: amount(costs[name].flops),
        "bytes moved": lambda name: size(costs[name].read + costs[name].written),
        "takes at least": lambda name: seconds(max(times[name].values())),
        "because of its": lambda name: max(times[name], key=times[name].__getitem__),
    }
    if made.devices > 1:
        rows["collectives"] = lambda name: kinds(costs[name].calls)
        rows["bytes received"] = lambda name: size(sum(costs[name].received.values()))
    if programs:
        rows |= {
            "compiles": lambda name: "yes",
            "temporaries": lambda name: size(programs[name].temporaries),
            "holds at most": lambda name: (
                f"{size(programs[name].peak)}, {programs[name].peak / made.device.memory:.0%}"
            ),
            "updated in place": lambda name: size(programs[name].in_place),
        }
    if programs and made.devices > 1:
        rows["has collectives"] = lambda name: kinds(programs[name].calls)
        rows["which receive"] = lambda name: size(sum(programs[name].received.values()))
    wide = max(len(cell("prefill")) for cell in rows.values()) + 4
    for title, cell in rows.items():
        yield f"{title:<19}{cell('prefill'):<{wide}}{cell('decode')}".rstrip()


def kinds(calls: Counter[str]) -> str:
    """Collectives, how many of each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(calls.items()) if count) or "none"


def bounds(made: "Plan", price: float | None) -> Iterator[str]:
    """Speed at most, and price at least."""
    for what, speed in (("decoding", made.tokens_a_second), ("reading", made.prompt_tokens_a_second)):
        cost = "" if price is None else f", at least {dollars(made.dollars(speed, price))} a million"
        yield f"{what:<19}at most {speed:,.0f} tokens/s{cost}"


def assumptions(config: "Config", made: "Plan", work: "Work", price: float | None) -> Iterator[str]:
    """What the figures rest on."""
    yield "Assumed, and nothing was run:"
    yield "- Data-sheet speeds. Products, bytes and messages all overlap; all else takes no time."
    yield "- Bytes: each weight in use and each remembered row once a program; activations stay on the chip."
    yield f"- Sequences are {work.context:,} tokens long when they decode; prompts are read by {work.chunk} tokens."
    if any(hasattr(spec, "top_k") for layer in config.layers for spec in layer):
        yield "- Tokens choose all experts equally often."
    if work.context > config.context:
        yield f"- The model was made for {config.context:,} tokens; what it says beyond them is another question."
    if price is not None:
        yield f"- {dollars(price)} a device and hour, every device busy all the time."


def check_export(model: str, mesh: str | None) -> None:
    """UserError if the model cannot be exported."""
    from ..compile.export import check_exportable

    check_exportable()
    if mesh is not None:
        raise UserError("--export writes programs for one device; leave --mesh out")
    if model.endswith(".json"):
        raise UserError(f"{model} has no weights to export; give a checkpoint")


def write_export(model: str, quant: str | None, work: "Work", target: str, file: Path) -> None:
    """Write programs and weights."""
    from ..compile.devices import device_named
    from ..compile.export import export
    from ..compile.steps import narrowed
    from ..lm import load

    with status(f"exporting {model}"):
        lm = load(model) if quant is None else load(model).quantize(quant)[0]
        platform = HERE if target == HERE else device_named(target).platform
        export(narrowed(lm.model, DTYPE), work, platform, file)
    click.echo(f"{file}: {file.stat().st_size / 1e6:,.1f} MB; run it with: python {file} ID,ID,…")


def write(path: Path, text: str) -> None:
    """Write a file in one step."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def amount(number: float) -> str:
    """A large number for people."""
    for unit in ("", " thousand", " million", " billion"):
        if number < 1000:
            return f"{number:.4g}{unit}"
        number /= 1000
    return f"{number:,.4g} trillion"


def seconds(time: float) -> str:
    """A time for people."""
    return f"{time * 1e3:,.3g} ms" if time < 1 else f"{time:,.3g} s"


def dollars(price: float) -> str:
    """A price for people."""
    return f"${price:,.2f}" if price >= 1 else f"${price:.3g}"
