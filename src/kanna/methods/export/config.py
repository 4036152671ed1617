"""What the user can say about an export."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ExportConfig(BaseModel):
    """Configuration of the step `export`.

    Args:
        format: What other tools shall read; dense is an ordinary checkpoint, as large as the source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dense"] = Field(
        description="What other tools shall read: dense.",
        json_schema_extra={"group": "What is written", "metavar": "dense"},
    )
