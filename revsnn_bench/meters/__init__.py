"""Small objects with one job: each measures one aspect of a training step and returns a frozen record."""
