"""`python -m mirabelle.cli`."""

import sys

from mirabelle.cli import main

if __name__ == "__main__":
    sys.exit(main())
