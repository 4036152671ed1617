"""LASER: rank reductions of single matrices, found by search, that make a model better (Sharma et al. 2023).

Reading order: `edits` (how an edit is written), `ranks` (what a rank means), `plan` and `apply` (what is
done to a matrix: the heart, with `linalg.reduction`), `step` (how the runner calls them). The search: `space`
(what is tried), `gradient` and `search` (in which order), `validation` (what an edit scores), `choose` (which
one is taken), `searching` (the whole), `composing` (several together), `analyze`, `restore`.
`verbs` are the command line, `report` what a page shows.
"""

from kanna.runs.method import Method

METHOD = Method(
    name="laser",
    summary="Reduce the rank of the matrices that edits name.",
    config="kanna.methods.laser.config:LaserConfig",
    step="kanna.methods.laser.step:STEP",
    verb=("laser", "apply"),
    example="kanna laser apply MODEL --edit mlp_in:27:0.01 --out DIR",
    group="Rank reductions that make a model better (LASER).",
    commands="kanna.methods.laser.verbs:app",
    views="kanna.methods.laser.report:VIEWS",
    required=("edits",),
)
