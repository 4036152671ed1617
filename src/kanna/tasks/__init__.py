"""Is a model right? `evaluate` scores rows of `data` with `scorers` and `metrics`; `verdict` compares two."""
