"""Arrays as values: what users hand in, what the catalogue says, and how both are checked. No I/O."""
