"""Merges that are tuned on tasks: how much of which model goes in is chosen by what the merge then scores.

`axes` is what may vary and how a recipe looks with it, `expert_tasks` rows in two parts for each expert,
`samples` what a model scored on rows that choose, `held` a merge in memory, `evaluating` puts these together,
`endpoints` are base and experts, `judging` compares the chosen one on the rows that chose nothing. `sweep`
tries every value of one or two numbers.
"""
