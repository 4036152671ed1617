"""Export: write a model for tools that do not know kanna.

`config` says in which format. `step` multiplies every form out (dense), `run` is the way to it from Python.
Whole numbers go to other formats as they are: `quantized` is the way, `held` gives the layers, `fit` refuses
what a format cannot hold, `check` reloads; `formats` is the table of them, one file each. `verbs` is the verb
of both.
"""

from kanna.runs.method import Method

METHOD = Method(
    name="export",
    summary="Write a compressed model for tools that do not know kanna.",
    config="kanna.methods.export.config:ExportConfig",
    step="kanna.methods.export.step:STEP",
    command="kanna.methods.export.verbs:export",
    example="kanna export DIR --format dense --out DENSE",
)
