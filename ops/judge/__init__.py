"""The judge: holds any kernel, in any array library or a program of its own, to an op's definition."""

from .kernel import compiled, described, program, signature_of
from .report import Failure, Interrupted, Report
from .subjects import OPS
from .verdict import validate

__all__ = [
    "OPS",
    "Failure",
    "Interrupted",
    "Report",
    "compiled",
    "described",
    "program",
    "signature_of",
    "validate",
]
