"""Whole numbers in place of weights: grids, rounding, packing. Tensors in, tensors out; no models, no files.

    w = s (q - z)     q in 0 .. 2^bits - 1, one scale s and zero-point z for each group of a row's inputs

`packing` puts codes q into words, `grid` says what codes mean, `rounding` finds scales and zero-points
without data, `gptq` codes and scales with statistics of the inputs.
"""
