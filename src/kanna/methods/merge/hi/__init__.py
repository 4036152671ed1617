"""Hi-Merging (Fu et al. 2025, arXiv 2506.12379): which blocks of which expert help or fight, and what to do.

`state` says how much of each expert is in each block; `ground` is what the algorithm stands on: whoever
scores states. `stage_one` finds for each expert how much of its difference is kept and how it is scaled,
`contributions` what each block gives each task and where the merge gives less, `resolving` acts on that,
block by block, with a guard. `blocks` and `recipes` say a state in mergekit's YAML, `merges` is the ground of
real models, `run` the way through all of it, `results` what is told.
"""
