"""Looking for everything that is wrong with recorded episodes.

Reading stops at the first broken rule; validating goes on and lists them all, one finding
per rule and field, with the first step at fault and how many there are. Three things look:
the rules of the file (``structure``), judgements of one episode (``episode``: ``pictures``,
``motion``, ``signals``), and judgements over the set (``collection``).
"""

from teamvla.data.validation.findings import (
    LEVELS,
    CodeSummary,
    Fault,
    Finding,
    Level,
    Selection,
    ValidationReport,
)
from teamvla.data.validation.run import validate_file, validate_roots

__all__ = [
    "LEVELS",
    "CodeSummary",
    "Fault",
    "Finding",
    "Level",
    "Selection",
    "ValidationReport",
    "validate_file",
    "validate_roots",
]
