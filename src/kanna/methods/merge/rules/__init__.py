"""The arithmetic: what is made of the values of one tensor in all models.

`operation` is what every rule is, `linear` and `differences` are the rules, `counting` finds thresholds
without sorting, `rounding` rounds once, `make` is the table. Nothing here knows of files, or of recipes
beyond the values that hold for a tensor.
"""
