"""Models that others packed into whole numbers, as kanna takes them over: codes as they are.

`layers` finds the layers in the files, `gptq` and `compressed` say what their formats declare. Whatever would
mean other numbers than the file's own, such as inputs in another order, is refused by the name of the layer.
"""
