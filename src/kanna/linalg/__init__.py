"""Tensors in, tensors out: decompositions, reductions, whitening, spectra, allocation of ranks."""
