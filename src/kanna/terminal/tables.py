"""The plain look of our tables."""

from kanna.reporting.console import table
from kanna.reporting.wording import percent, size

__all__ = ["percent", "size", "table"]
