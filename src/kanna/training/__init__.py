"""Training that every method shares: one resumable loop over the user's rows.

In reading order: `examples` (rows become token ids, and which of them are scored), `batches` (which examples
go into a step), `schedule` (the rate there), `loss` (cross-entropy or divergence from a teacher, at scored
tokens only), `passes` (what is computed together), `optimiser` (AdamW whose state can be cut with its
parameters), `state` (what a killed run goes on with), `loop` (all of it together).
"""
