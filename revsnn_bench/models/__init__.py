"""Spiking networks that take any registered node."""
