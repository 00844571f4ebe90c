"""All seeded bugs."""

from . import attention, formats, moe, qmatmul, sampling, small, ssm
from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = tuple(
    mutant for module in (attention, ssm, moe, sampling, small, formats, qmatmul) for mutant in module.MUTANTS
)
