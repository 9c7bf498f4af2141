"""`python -m frontend`: serve completions."""

import sys

from frontend.server import main

sys.exit(main())
