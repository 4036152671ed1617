"""What results of `kanna laser` must hold to be shown."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Scores = dict[str, float]


class _Part(BaseModel):
    """Unknown fields are fine; a number that is a text is not."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Named(_Part):
    name: str


class _Task(_Part):
    name: str
    metric: str
    rows: int
    validation_rows: int
    test_rows: int


class _Trial(_Part):
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


class _Budget(_Part):
    fast: int | None


class _Settings(_Part):
    layers: str
    rhos: Annotated[list[str], Field(min_length=1)]
    rule: Literal["constrained", "published"]
    max_ppl_rise: float | None
    text: str | None
    budget: _Budget


class _Figures(_Part):
    value: float
    log_loss: float | None = None
    consistency: float | None = None


class _Group(_Part):
    rows: int
    value: float


Groups = dict[str, _Group]


class _TestedBy(_Part):
    key: str
    base: Groups
    edit: Groups
    magnitude: Groups
    random: Groups


class _Tested(_Part):
    edits: list[str]
    rows: int
    metric: str
    floors: Scores
    base: _Figures
    edit: _Figures
    magnitude: _Figures
    random: _Figures
    difference: float
    interval: Interval
    confidence: float
    lost: int | None
    gained: int | None
    by: _TestedBy | None = None


class Search(_Part):
    model: _Named
    task: _Task
    layers: Annotated[int, Field(gt=0)]
    settings: _Settings
    candidates: int
    matrices: int
    left_out: int
    base: _Trial
    trials: list[_Trial]
    pareto: list[_Trial]
    chosen: _Trial
    base_wins: bool
    test: _Tested | None


class _Start(_Part):
    accuracy: float
    log_loss: float
    consistency: float | None


class _Stage(_Start):
    edit: str
    accepted: bool
    number: int


class _Perplexity(_Part):
    base: float | None
    edited: float | None


class Composition(_Part):
    model: _Named
    task: _Task
    base: _Start
    stages: list[_Stage]
    accepted: int
    perplexity: _Perplexity
    test: _Tested | None


class _AnalysedTask(_Part):
    name: str
    rows: int


class _Spectrum(_Part):
    edit: str
    matrix: str
    rank: int
    full_rank: int
    effective_rank: float
    kept_energy: float
    rank_marchenko_pastur: int
    rank_gavish_donoho: int
    laserrmt_signal_to_noise: float | None


class _Three(_Part):
    base: Scores
    top: Scores
    bottom: Scores


class _Difference(_Part):
    difference: float
    interval: Interval
    confidence: float
    lost: int | None
    gained: int | None


class _Answer(_Part):
    row: int
    change: str
    prompt: str
    expected: str
    base: str
    top: str
    bottom: str


class _AnalysedBy(_Part):
    key: str
    base: Groups
    top: Groups
    bottom: Groups


class _Written(_Part):
    texts: list[str] = []
    words: float
    repetition: float
    distinct: float


class _Samples(_Part):
    prompts: list[str] = []
    base: _Written
    edited: _Written


class Analysis(_Part):
    model: _Named
    task: _AnalysedTask
    metric: str
    edits: Annotated[list[str], Field(min_length=1)]
    spectra: list[_Spectrum]
    scores: _Three
    floors: Scores
    difference: _Difference
    answers: list[_Answer] = []
    by: _AnalysedBy | None = None
    perplexity: _Perplexity | None = None
    samples: _Samples | None = None
