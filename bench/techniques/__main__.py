"""What the techniques everybody quotes are worth here: `python -m bench.techniques`.

Claims come from papers about larger models on accelerators; what is measured is SmolLM2-135M on this machine, in
float32 but for the technique: one text, several, and KL(float32 || with the technique) a token. Between claim and
measurement stands what the roof allows (`bench.roofline`), and the last column says in figures of the same run why
they differ. Whether a text is still any good, and what a good one costs, is asked of tiny-transformer
(`bench.success`); distillation altogether, since SmolLM2 has no student. What other experiments have measured is
taken from their results, the rest is measured now. Writes results/techniques.json.
"""

import sys

import click

import minillm
from minillm.errors import UserError

from ..peers import MODEL
from ..report import read, show_table, where_and_what, write
from .roof import Roof
from .rows import NEEDED, Run, techniques
from .table import table_of


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--documents", default=12, show_default=True, type=click.IntRange(2), help="Texts for divergence.")
def main(rounds: int, documents: int) -> None:
    try:
        known = {name: read(name) for name in NEEDED}
        plain = minillm.load(MODEL)
        found = techniques(Run(known, plain, Roof.over(plain, known["roofline"]), rounds, documents))
    except UserError as error:
        sys.exit(f"bench.techniques: {error}")
    others = known["success"]["setting"]
    report = {
        "rows": {name: row._asdict() for name, row in found.items()},
        "setting": {"rounds": rounds, "documents": documents, "model": MODEL, "others": others},
        **where_and_what(),
        "table": table_of(found, known["success"]),
    }
    show_table(report["table"], width=230)
    write("techniques", report)


if __name__ == "__main__":
    main()
