"""The program `kanna`: `main`, and the verbs that belong to no method."""
