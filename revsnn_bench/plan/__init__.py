"""What fits: the cheapest plan within a byte budget, and bytes predicted before a step runs.

`profile`: what each block costs under each option. `solve`: the cheapest choice. `planning`: apply, measure, repair.
`predict`: a step on fake tensors.
"""
