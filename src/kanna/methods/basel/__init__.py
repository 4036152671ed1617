"""Basel: keep the bases of each matrix that the target task needs (Li et al. 2024, arXiv 2405.15877).

A matrix is a sum of bases u_i v_i^T, each with a weight sigma_i. Part 1 learns the weights anew on the task,
with a few new bases beside the old ones, and drops in events the bases that turn out not to matter; part 2
trains the factors that are left.

Reading order: `config` (what can be said), `bases` (a matrix as its bases: the heart), `importance` (what a
basis is worth), `budget` (which bases an event keeps), `events` (when, and what is cut), `penalty` (L1),
`data` (the rows), `plan`, `execute` (both parts), `step` (how the runner calls them), `results` and `report`
(what is told), `run` (from Python).
"""

from kanna.runs.method import Method

METHOD = Method(
    name="basel",
    summary="Keep the bases of each matrix that a task needs: learn weights, drop some, train the rest.",
    config="kanna.methods.basel.config:BaselConfig",
    step="kanna.methods.basel.step:STEP",
    views="kanna.methods.basel.report:VIEWS",
    example="kanna basel MODEL --data train.jsonl --keep 0.25 --out DIR",
)
