"""``python -m sb3_refine.cli``."""

import sys

from sb3_refine.cli.main import main

if __name__ == "__main__":  # workers of MPI import this module too
    sys.exit(main())
