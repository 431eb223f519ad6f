"""``python -m ai_learning.cli``."""

import sys

from . import main

sys.exit(main())
