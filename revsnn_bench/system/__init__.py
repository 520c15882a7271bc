"""The machine a run takes place on: its environment, its GPU, this process, and whether it is fit to measure."""
