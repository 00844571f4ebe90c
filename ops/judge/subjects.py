"""What can be judged: every op that has a `cases.py`."""

from difflib import get_close_matches

from ..attention.cases import ATTENTION
from ..attention.cases_mla import MLA
from ..attention.cases_paged import PAGED_ATTENTION
from ..cases import DistributionOp, Op
from ..formats.cases import OPS as FORMATS
from ..moe.cases import OPS as MOE
from ..qmatmul.cases import OPS as PRODUCTS
from ..sampling.cases import OPS as SAMPLING
from ..sampling.cases import SAMPLERS
from ..small_cases import OPS as SMALL
from ..ssm.cases import OPS as SSM

SUBJECTS = (ATTENTION, PAGED_ATTENTION, MLA, *SSM, *MOE, *SAMPLING, *SAMPLERS, *SMALL, *FORMATS, *PRODUCTS)
OPS: dict[str, Op | DistributionOp] = {op.name: op for op in SUBJECTS}


def find_op(name: str) -> Op | DistributionOp:
    """The op of that name. ValueError lists them all if there is none."""
    if name not in OPS:
        near = get_close_matches(name, OPS, 1)
        guess = f"did you mean {near[0]!r}? Expected" if near else "expected"
        raise ValueError(f"op is {name!r}, {guess} one of: {', '.join(OPS)}")
    return OPS[name]
