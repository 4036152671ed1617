"""The runner, which carries steps from an opened model to a verified, judged and recorded directory.

It knows no method. `method` says where the parts of one are, `step` what it must be able to do, `source` is a
model on disk, `runner` the way from one to the other; the rest are the services it uses: unfinished work,
output, probe, judge, evaluations, record.
"""
