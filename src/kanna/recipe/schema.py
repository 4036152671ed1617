"""What a recipe may say; imports nothing heavy.

model: models/base
out: models/small
calibration: text.jsonl
tolerance: {tasks: [{task: app.jsonl, max_drop: 1%}]}
steps:
  - METHOD: {SETTING: VALUE}
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kanna.methods import methods
from kanna.tasks.options import EvalOptions, Tolerances

EXAMPLE = "{model: DIR, out: DIR, calibration: FILE, steps: [{METHOD: {SETTING: VALUE}}]}"


class Recipe(BaseModel):
    """A model, and the steps that are carried out on it one after the other.

    Relative paths are taken from where the program runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Directory of a model, or a hub id in the local cache.")
    out: str | None = Field(default=None, description="New directory; may be given when the recipe is run.")
    calibration: str | None = Field(default=None, description="Text for the steps that read some.")
    device: str = Field(default="cpu", description="Where to compute: cpu, cuda, cuda:1, mps.")
    tolerance: str | Tolerances | None = Field(
        default=None, description="Tasks and what may be lost on them: a YAML file, or the same here."
    )
    evaluation: EvalOptions | None = Field(default=None, description="How the tasks are scored.")
    steps: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="One mapping each, from the method's name to its settings."
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipes, with the settings of every method, for editors."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    choices = []
    for name, method in methods().items():
        if not method.step:
            continue
        settings = method.load_config().model_json_schema()
        definitions |= settings.pop("$defs", {})
        if method.required:
            settings["required"] = sorted({*settings.get("required", ()), *method.required})
        choices.append(
            {
                "type": "object",
                "description": method.summary,
                "properties": {name: settings},
                "required": [name],
                "additionalProperties": False,
            }
        )
    schema["properties"]["steps"]["items"] = {"oneOf": choices}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe of kanna", **schema}
