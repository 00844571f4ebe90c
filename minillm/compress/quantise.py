"""From what a user asks for to a quantised model: rules, methods with a text in view, or bits to give away."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..model import Model
from ..quant.quantised import Change, Find, Progress, quantised, rounded
from ..quant.rules import Rule, read_rules
from ..texts import calibration
from ..tokenizer import Tokenizer
from .auto import auto_rules
from .calibration import windows
from .methods import NO_TOKENIZER, Calibrated, check_methods, inputs_of

AUTO = re.compile(r"auto:([0-9]+(?:\.[0-9]+)?)")


def quantise(
    model: Model,
    tokenizer: Tokenizer | None,
    recipe: str,
    texts: Sequence[str] | None,
    longest: int,
    folder: Path | None,
    progress: Progress,
) -> tuple[Model, list[Change]]:
    """As `LM.quantize`; `longest` is how many tokens the model can see."""
    auto = AUTO.fullmatch(recipe)
    rules, inputs = [] if auto else read_rules(recipe), {}
    check_methods(rules)
    if auto:
        if tokenizer is None:
            raise UserError(NO_TOKENIZER)
        batches = windows(tokenizer, calibration() if texts is None else texts, longest)
        rules = auto_rules(model, batches, float(auto[1]), progress)
    elif any(rule.method for rule in rules):
        inputs = inputs_of(model, tokenizer, texts, longest, folder, progress)
    elif texts is not None or folder is not None:
        raise UserError(f"recipe {recipe!r} looks at no text, expected METHOD:RECIPE or auto:BITS beside one")

    def find(rule: Rule) -> Find:
        """How the matrices of a rule are rounded."""
        return Calibrated(rule.method, inputs, folder) if rule.method else rounded

    return quantised(model, rules, find, progress)
