"""The error of a user's mistake, and telling one of the devices' that is."""

import contextlib
import re
from collections.abc import Iterator

MEMORY = re.compile("memory|hbm|allocat", re.IGNORECASE)


class UserError(ValueError):
    """A mistake the user can mend; the message is one line: what, the value seen, what is expected.

    The command line prints the message alone and exits with status 2.
    """


@contextlib.contextmanager
def memory_told(hint: str) -> Iterator[None]:
    """Around what computes on devices.

    Args:
      hint: what to do where they are too small.

    Raises:
      UserError: they are.
    """
    try:
        yield
    except RuntimeError as error:  # as jax's are, which need not be imported by now
        reason = str(error).strip().partition("\n")[0][:300]
        if not reason.startswith("RESOURCE_EXHAUSTED") or not MEMORY.search(reason):
            raise
        raise UserError(f"a device has too little memory: {hint} ({reason})") from error
