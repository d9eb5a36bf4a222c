"""`python -m umeta` is the command line."""

import sys

from umeta.cli.main import main

sys.exit(main())
