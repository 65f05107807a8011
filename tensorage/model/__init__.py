"""Arrays as values: keys, arrays and attributes of users, entries of the catalogue, and their checks. No I/O."""
