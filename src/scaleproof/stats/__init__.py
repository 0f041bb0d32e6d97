"""Pure functions from arrays to numbers with their uncertainty. No opinion, no files."""
