"""Two-arm vision-language-action learning, from data to checkpoint."""

__version__ = "0.1.0"
