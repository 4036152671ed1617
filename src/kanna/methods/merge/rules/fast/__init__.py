"""The arithmetic of `rules` by compiled loops, where numba is there (`kanna[fast]`): the same bytes, sooner.

`compiled` has the loops, `operations` the operations that use them in the place of the plain ones, and
`available` says whether they are used. Everything that is not listed there is plain.
"""
