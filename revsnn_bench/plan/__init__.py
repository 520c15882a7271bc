"""What fits: the largest T or batch within a byte budget."""
