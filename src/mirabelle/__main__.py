"""`python -m mirabelle`."""

import os
import sys

# Python puts the folder that it is called in first for -m, where a file could take the place of an
# installed package; `main` puts it last where a module of it is named.
if not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from mirabelle.cli import main

if __name__ == "__main__":
    sys.exit(main())
