"""All seeded bugs."""

from . import attention, moe, sampling, small, ssm
from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = tuple(
    mutant for module in (attention, ssm, moe, sampling, small) for mutant in module.MUTANTS
)
