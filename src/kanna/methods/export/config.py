"""What the user can say about an export."""

from typing import Literal

from kanna.configuration import Configuration, setting


class ExportConfig(Configuration):
    """Configuration of the step `export`."""

    format: Literal["dense"] = setting(
        ..., "What other tools shall read: dense.", {"group": "What is written", "metavar": "dense"}
    )
