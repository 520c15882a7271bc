"""Real data, read from where it lies; nothing is downloaded."""
