"""Help that fits a screen, for a command with more options than a screen has lines."""

from typing import Any

import click


class Brief(click.Command):
    """Its --help explains the options that are used `often` and names the others; --help-all explains each."""

    def __init__(self, *arguments: Any, often: str, **options: Any):
        super().__init__(*arguments, **options)
        self.often = often.split()
        flag: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
        self.params.append(click.Option(["--help-all"], **flag, callback=explain_all, help="Explain every option."))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Those that are asked for."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = {
            max(one.opts, key=len): record for one in options if (record := one.get_help_record(ctx)) is not None
        }
        if not ctx.meta.get(__name__):
            others = [name for name in records if name not in self.often and name != "--help-all"]
            records = {name: record for name, record in records.items() if name in self.often}
            records["--help-all"] = "--help-all", f"Explain {', '.join(others)}, too."
        with formatter.section("Options"):
            formatter.write_dl(list(records.values()))


def explain_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show the help of every option, and end."""
    if value:
        ctx.meta[__name__] = True
        click.echo(ctx.get_help())
        ctx.exit()
