"""The tuner: which settings of the nodes are worth their bytes, within a budget of bytes that is never exceeded.

`space`: what is searched, and the case of a choice. `trial`: one choice, foreseen, measured and trained in a worker.
`study`: the search, its two journals, and the best trained again on fresh seeds.
"""
