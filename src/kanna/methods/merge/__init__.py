"""Merge: one model out of several, by recipes in mergekit's YAML.

`tree` is YAML with the lines that it came from; `known` is what recipes may say, `recipe` what one says,
`reading` reads it, `settings` is a value that may depend on tensor and layer, `resolve` which value holds for
which tensor. `inputs` opens the models and refuses what does not fit together, `layers` numbers their layers,
`modules` says which part of a recipe speaks of which of them, `layout` what is made from what, `composed` is
the configuration of that, `plan` what will be done.
`rules` is the arithmetic, one file for each family of methods; `streaming` reads tensors by chunks, `shards`
writes them and keeps the `journal`. `run` is the way through all of it, `written` what is said of the result,
`verify` looks at one again.
"""

from kanna.runs.method import Method

METHOD = Method(
    name="merge",
    summary="Make one model out of several, by a recipe in mergekit's YAML.",
    command="kanna.methods.merge.verbs:app",
    example="kanna merge run recipe.yml --out DIR",
    views="kanna.methods.merge.report:VIEWS",
    file_key="merge_method",
    file_verb="kanna.methods.merge.verbs:run_file",
)
