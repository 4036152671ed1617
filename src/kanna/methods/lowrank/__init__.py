"""Low rank: weight matrices become products of two smaller ones, without training (Moar et al. 2024).

Reading order: `config` (what can be said), `plan` (what will be done), `ranks` (how many directions each
matrix keeps), `metric` (which error is minimised: the heart, one formula a method), `survey` and `gradients`
(what the metric is made of), `replace` (block by block, also the anchored fit), `refine` (optional steps of
training), `execute` (these in their order), `step` (how the runner calls them), `run` (from Python).
"""

from kanna.runs.method import Method

METHOD = Method(
    name="lowrank",
    summary="Replace weight matrices by low-rank factors; write a smaller model, reload it and check it.",
    config="kanna.methods.lowrank.config:LowRankConfig",
    step="kanna.methods.lowrank.step:STEP",
    example="kanna lowrank MODEL --keep 0.8 --calibration text.jsonl --out DIR",
    calibration=True,
)
