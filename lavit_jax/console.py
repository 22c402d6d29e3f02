"""What commands say of long work while it goes on."""

import sys


def say(text: str) -> None:
    """Prints a line to standard error, at once: standard output is for results."""
    print(text, file=sys.stderr, flush=True)
