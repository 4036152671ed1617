"""Export: write a model for tools that do not know kanna.

`config` says in which format, `step` multiplies every form out (dense), `run` is the way from Python.
"""

from kanna.runs.method import Method

METHOD = Method(
    name="export",
    summary="Write a compressed model for tools that do not know kanna; dense multiplies every factor out.",
    config="kanna.methods.export.config:ExportConfig",
    step="kanna.methods.export.step:STEP",
    example="kanna export DIR --format dense --out DENSE",
)
