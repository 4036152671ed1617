"""PEQA: whole numbers stay as they are, their scales learn a task, and a task is a small set of scales.

Reading order: `config` (what can be said), `plan` (rows, teacher, how long), `execute` (scales on a model in
memory are trained), `step` (how the runner calls them), `run` (from Python), `results` and `report` (the sets
of a directory, and how they are drawn). The product whose scales are learnt lies in `kanna.quant.scaled`,
what a set is in `kanna.checkpoint.scale_sets`.
"""

from kanna.runs.method import Method

METHOD = Method(
    name="tune",
    summary="Teach a model of whole numbers a task by its scales alone: a small set of them, inside BASE.",
    config="kanna.methods.peqa.config:TuneConfig",
    step="kanna.methods.peqa.step:STEP",
    example="kanna tune BASE --data lessons.jsonl --name law --task app.jsonl --max-drop 1%",
    views="kanna.methods.peqa.report:VIEWS",
    inside="kanna.methods.peqa.config:folder",
)
