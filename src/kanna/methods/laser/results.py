"""What a search, a composition and an analysis find: the shape of their files, of --json and of the report.

Whoever finds something builds these models, and whoever reads a file of one validates it with the same model.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

from kanna.methods.laser.budget import Budget
from kanna.result import Interval, Result, Scores, Several
from kanna.tasks.verdict.tolerance import Decision

# Files in model directories: how the edits were found, and put together.
RESULT, STAGES = "laser-search.json", "laser-stages.json"


class Part(Result):
    """A part of such a file."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: all fields that were given."""
        return self.model_dump(mode="json", exclude_unset=True)


class Model(Part):
    """A model and what it is, whatever its files."""

    name: str
    hash: str


class Trial(Part):
    """An edit and what it scored on the validation rows.

    Args:
        edit: As `parse_edit` reads it; empty for the model as it is.
        layer: Of the block; -1 for the model as it is.
        role: Of the matrix; empty likewise.
        matrix: Its name; empty likewise.
        rho: As given.
        rank: What it means.
        blocks: Row blocks that were truncated each on its own.
        rows: Validation rows it was scored on.
        accuracy: The headline metric, where more is better.
        log_loss: Of the right answers, nats per row.
        consistency: Share of facts of which all wordings are right; None without groups.
        perplexity: Of plain text; None where it was not measured.
    """

    edit: str
    layer: int
    role: str
    matrix: str
    rho: str
    rank: int
    blocks: int
    rows: int
    accuracy: float
    log_loss: float
    consistency: float | None
    perplexity: float | None

    def measured(self, perplexity: float) -> Self:
        """The same with its perplexity."""
        return self.model_copy(update={"perplexity": perplexity})


class Group(Part):
    """The headline metric on rows of one kind."""

    rows: int
    value: float


Groups = dict[str, Group]


class Figures(Part):
    """The headline metric as `value` and under its own name, and where they were computed the others."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Scores

    value: float
    log_loss: float | None = None
    consistency: float | None = None


class TestedBy(Part):
    """Scores on test rows by the values of a key."""

    key: str
    base: Groups
    edit: Groups
    magnitude: Groups
    random: Groups


class Tested(Part):
    """Edits and two controls of the same size on rows that chose nothing.

    Args:
        difference: Of the edited model and the one as it is; this and the rest as `Decision` has them.
    """

    edits: list[str]
    rows: int
    metric: str
    floors: Scores
    base: Figures
    edit: Figures
    magnitude: Figures
    random: Figures
    difference: float
    interval: Interval
    confidence: float
    p_flips: float | None
    lost: int | None
    gained: int | None
    by: TestedBy | None = None


class Task(Part):
    """The rows that chose, and those that tested."""

    name: str
    sha256: str
    kind: str
    metric: str
    rows: int
    validation_rows: int
    test_rows: int


class Settings(Part):
    """What a search was asked for; files by their names. See `SearchOptions`."""

    roles: str
    layers: str
    rhos: Annotated[list[str], Field(min_length=1)]
    blocks: list[int]
    rule: Literal["constrained", "published"]
    max_ppl_rise: float | None
    text: str | None
    text_tokens: int
    share: float
    first: bool
    test: str | None
    by: str | None
    seed: int
    budget: Budget


class Search(Part):
    """All that `laser-search.json` holds.

    Args:
        layers: Of the model.
        candidates: In the space; `left_out` of them were not reached.
        evaluations: On all validation rows, the model as it is among them.
        matrices: In the space.
        base: The model as it is.
        predicted: Candidate -> change of the loss that the gradient predicts; empty without one.
        pareto: Trials beaten by no other in everything at once.
        chosen: The base where nothing beats it.
        test: Of the chosen edit, else of the most accurate one; None where none was tried.
    """

    schema_version: Literal[1]
    kind: Literal["laser-search"]
    model: Model
    task: Task
    layers: Annotated[int, Field(gt=0)]
    settings: Settings
    candidates: int
    evaluations: int
    matrices: int
    left_out: int
    base: Trial
    trials: list[Trial]
    predicted: Scores
    pareto: list[Trial]
    chosen: Trial
    base_wins: bool
    test: Tested | None


class Start(Part):
    """Scores of the model as it is, on validation rows."""

    accuracy: float
    log_loss: float
    consistency: float | None


class Stage(Part):
    """One step of a composition that was tried.

    Args:
        edit: As `parse_edit` reads it.
        accuracy: With all edits accepted so far and this one.
        log_loss: Likewise.
        consistency: Likewise; None without groups.
        accepted: Whether it stays.
        number: Of the stage it makes, from 1; 0 where it was rejected.
    """

    edit: str
    accuracy: float
    log_loss: float
    consistency: float | None
    accepted: bool
    number: int


class Perplexity(Part):
    """Of plain text, before and after; None where it was not measured."""

    base: float | None
    edited: float | None


class Composition(Part):
    """All that `laser-stages.json` holds."""

    schema_version: Literal[1]
    kind: Literal["laser-compose"]
    model: Model
    task: Task
    base: Start
    stages: list[Stage]
    accepted: int
    perplexity: Perplexity
    test: Tested | None

    @property
    def edits(self) -> list[str]:
        """Those that were accepted, in order."""
        return [stage.edit for stage in self.stages if stage.accepted]


class AnalysedTask(Part):
    """The rows, all of which were scored."""

    name: str
    sha256: str
    rows: int


class Spectrum(Part):
    """What an edit leaves of its matrix, and ranks that rules of random matrices would leave."""

    edit: str
    matrix: str
    rank: int
    full_rank: int
    effective_rank: float
    kept_energy: float
    rank_marchenko_pastur: int
    rank_gavish_donoho: int
    laserrmt_signal_to_noise: float | None


class Compared(Part):
    """Scores of the model as it is, of the kept components, and of the removed ones alone."""

    base: Scores
    top: Scores
    bottom: Scores


class Answer(Part):
    """What the three models say to a row that was set right ("gained") or wrong ("lost"); `row` is from 0."""

    row: int
    change: str
    prompt: str
    expected: str
    base: str
    top: str
    bottom: str


class ComparedBy(Part):
    """Scores by the values of a key."""

    key: str
    base: Groups
    top: Groups
    bottom: Groups


class Written(Part):
    """Free texts; see `kanna.tasks.scorers.generation.Samples`."""

    texts: Several[str]
    words: float
    repetition: float
    distinct: float


class Continued(Part):
    """Prompts and how the model as it is and the edited one go on."""

    prompts: list[str]
    base: Written
    edited: Written


class Analysis(Part):
    """All that a file of `kanna laser analyze` holds; the last three where they were asked for."""

    schema_version: Literal[1]
    kind: Literal["laser-analysis"]
    model: Model
    task: AnalysedTask
    metric: str
    edits: Annotated[list[str], Field(min_length=1)]
    spectra: list[Spectrum]
    scores: Compared
    floors: Scores
    difference: Decision
    answers: list[Answer]
    by: ComparedBy | None = None
    perplexity: Perplexity | None = None
    samples: Continued | None = None
