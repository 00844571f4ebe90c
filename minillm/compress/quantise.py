"""From what a user asks for to a quantised model: rules, methods with a text in view, or bits to give away."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import UserError
from ..parallel import Spread
from ..parallel.quantise import quantised_on_mesh
from ..quant.quantised import Change, Find, Progress, quantised, rounded
from ..quant.rules import Rule, read_rules
from ..texts import calibration
from ..tokenizer import Tokenizer
from .auto import auto_rules
from .calibration import windows
from .methods import NO_TOKENIZER, Calibrated, check_methods, inputs_of

AUTO = re.compile(r"auto:([0-9]+(?:\.[0-9]+)?)")


def quantise(
    model: Any,
    config: Config,
    tokenizer: Tokenizer | None,
    recipe: str,
    texts: Sequence[str] | None,
    folder: Path | None,
    progress: Progress,
) -> tuple[Any, list[Change]]:
    """As `LM.quantize`, of a `Model` or a `Spread`."""
    if isinstance(model, Spread):
        if ":" in recipe or texts is not None or folder is not None:
            raise UserError(
                f"recipe {recipe!r} looks into blocks, which a mesh has in pieces; quantise without one"
            )
        return quantised_on_mesh(model, config, read_rules(recipe), progress)
    auto = AUTO.fullmatch(recipe)
    rules, inputs = [] if auto else read_rules(recipe), {}
    check_methods(rules)
    if auto:
        if tokenizer is None:
            raise UserError(NO_TOKENIZER)
        batches = windows(tokenizer, calibration() if texts is None else texts, config.context)
        rules = auto_rules(model, batches, float(auto[1]), progress)
    elif any(rule.method for rule in rules):
        inputs = inputs_of(model, tokenizer, texts, config.context, folder, progress)
    elif texts is not None or folder is not None:
        raise UserError(f"recipe {recipe!r} looks at no text, expected METHOD:RECIPE or auto:BITS beside one")

    def find(rule: Rule) -> Find:
        """How the matrices of a rule are rounded."""
        return Calibrated(rule.method, inputs, folder) if rule.method else rounded

    return quantised(model, rules, find, progress)
