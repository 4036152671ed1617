"""How a model is asked: likelihoods (`scorer`, `masked`, `classifier`), text it writes, perplexity."""
