"""What a config needs on a TPU pod, found by compiling its real steps for it."""
