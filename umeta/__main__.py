"""`python -m umeta` is the command line."""

import sys

from umeta.cli import main

sys.exit(main())
