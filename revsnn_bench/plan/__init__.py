"""What fits: the largest T or batch within a byte budget, and the cheapest plan; bytes predicted before a step runs.

`profile`: what each block costs under each option. `solve`: the cheapest choice. `planning`: apply, measure, repair.
`predict`: a step on fake tensors. `largest`: one axis of a case.
"""
