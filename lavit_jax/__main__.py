"""`python -m lavit_jax` is `lavit`."""

import sys

from lavit_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
