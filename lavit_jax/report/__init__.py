"""The self-contained report of a run."""
