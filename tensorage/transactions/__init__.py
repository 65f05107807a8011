"""Several changes in one step: all of them, or none."""
