"""A method as the house sees it: where its parts are, as strings, each loaded when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kanna.runs.step import Step


@dataclass(frozen=True)
class Method:
    """One method of compression, or another way to write a model anew.

    Args:
        name: Of its step in recipes, in the lineage and in results.
        summary: One sentence, for lists of verbs.
        config: Of a method with a step, "module:class" of a pydantic model that imports neither torch nor
            transformers; its fields become flags, keys of recipes and Python arguments alike.
        step: "module:object" of its `runs.step.Step`; empty for a method that takes several models and so has
            verbs alone.
        verb: Words of the command that runs the step; empty for the name alone.
        example: A command line, shown in the help.
        group: One sentence on all verbs of the method, where it has several.
        command: "module:function" of the verb, where it does more than run the step; or "module:app" of all
            verbs of a method without a step.
        commands: "module:app" of a typer app with further verbs; they come under the first word of `verb`.
        views: "module:VIEWS" of what a report can show of its results.
        calibration: Whether the step can read calibration text.
        hidden: Whether the command line leaves the step to verbs of its own.
        required: Settings without which a step changes nothing: whoever asks for one gives them. Where a
            search chose nothing, that is recorded.
        inside: "module:function" of a configuration, giving the folder inside the model's directory that the
            step makes where no output is named; empty for a step that makes new directories alone.
        file_key: A key at the top of files that this method reads in the place of recipes.
        file_verb: "module:function" for `kanna run` of such a file: (session, file, out, force, resume,
            dry_run) -> exit status.
    """

    name: str
    summary: str
    config: str = ""
    step: str = ""
    verb: tuple[str, ...] = ()
    example: str = ""
    group: str = ""
    command: str = ""
    commands: str = ""
    views: str = ""
    calibration: bool = False
    hidden: bool = False
    required: tuple[str, ...] = ()
    inside: str = ""
    file_key: str = ""
    file_verb: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return self.verb or (self.name,)

    def load_config(self) -> type[BaseModel]:
        config: type[BaseModel] = load(self.config)
        return config

    def load_step(self) -> Step[Any]:
        step: Step[Any] = load(self.step)
        return step

    def folder_inside(self, config: BaseModel) -> str | None:
        """The folder that the step makes inside a model's directory; None where it makes none."""
        return load(self.inside)(config) if self.inside else None


def load(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
