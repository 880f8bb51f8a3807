"""``python -m sb3_refine.cli``."""

import sys

from sb3_refine.cli.main import main

sys.exit(main())
