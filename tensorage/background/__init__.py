"""Writing from a loop that does not wait for it."""
