"""The arithmetic: what is made of the values of one tensor in all models.

`operation` is what every rule is. The rules: `linear`, `differences` (with `pruning`, what stays of one),
`spherical`, `stock`, `nearness`, `passing`. `counting` finds thresholds without sorting, `sums` adds up
independently of chunks, `rounding` rounds once, `make` is the table. Nothing here knows of files, or of
recipes beyond the values that hold for a tensor.
"""
