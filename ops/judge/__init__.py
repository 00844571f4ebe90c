"""The judge: holds any kernel, in any array library or a program of its own, to an op's definition."""

from .kernel import compiled, described, program
from .report import Failure, Report
from .subjects import OPS
from .verdict import validate

__all__ = ["OPS", "Failure", "Report", "compiled", "described", "program", "validate"]
