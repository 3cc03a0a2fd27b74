"""`python -m fusedtricks` is the command `fusedtricks`."""

import sys

from fusedtricks.cli import main

if __name__ == "__main__":
    sys.exit(main())
