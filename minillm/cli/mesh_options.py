"""The options of every command whose model may be spread over many devices, or many processes."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

OPTIONS = (
    click.option("--mesh", metavar="AXIS=N,…", help="Spread the model over devices: model=4; data=2,model=4."),
    click.option("--coordinator", metavar="HOST:PORT", help="Where process 0 is, if each device has a process."),
    click.option("--num-processes", metavar="N", type=int, help="How many there are, with --coordinator."),
    click.option("--process-id", metavar="I", type=int, help="Which one this is, from 0; the first prints."),
)


def mesh_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it sees `mesh` alone, and runs as one of several processes if so asked."""

    @functools.wraps(command)
    def run(*, coordinator: str | None, num_processes: int | None, process_id: int | None, **options: Any) -> None:
        numbers = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
        missing = [name for name, value in numbers.items() if value is None]
        if len(missing) == len(numbers):
            command(**options)
            return
        if coordinator is None or num_processes is None or process_id is None:
            raise UserError(f"without {' and '.join(missing)}, expected all of {', '.join(numbers)}, or none")
        check(options, num_processes)
        from ..parallel import distributed

        with distributed.join(coordinator, num_processes, process_id, named(options)) as job:
            seed = job.seed if options["seed"] is None else options["seed"]
            command(**options | {"seed": seed, "stats": options["stats"] and process_id == 0})

    for option in reversed(OPTIONS):
        run = option(run)
    return run


def check(options: Mapping[str, Any], num_processes: int) -> None:
    """UserError if several processes cannot do what is asked for."""
    from ..parallel.mesh import parsed

    if options["mesh"] is None:
        raise UserError("--mesh is missing, which says how --num-processes share the model; for two give model=2")
    devices = math.prod(parsed(options["mesh"]).values())
    if devices != num_processes:
        raise UserError(
            f"--mesh {options['mesh']} has {devices} devices, but --num-processes is {num_processes}; expected a "
            "process for each device"
        )
    if options["source"] or options["target"]:
        raise UserError("--input does not go with --coordinator; leave one of them out")
    if options["draft"]:  # it is dropped where the clock says so, and each process has its own
        raise UserError("--draft does not go with --coordinator; leave one of them out")
    if (options["named"] or options["prompt"]) in (None, "-"):
        raise UserError("PROMPT is missing, which with --coordinator cannot be on standard input; give it to each")


def named(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by the names that a user knows."""
    names = {one.name: one.opts[-1] for one in click.get_current_context().command.params}
    return {names[name]: value for name, value in options.items()}


def mesh_of(axes: str | None) -> "Mesh | None":
    """The mesh that was asked for, if any."""
    if axes is None:
        return None
    from ..parallel import new_mesh

    return new_mesh(axes)
