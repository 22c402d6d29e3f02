"""Pure Flax modules and array functions: no files, flags, logs or devices."""
