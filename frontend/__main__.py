"""`python -m frontend`: serve completions."""

import sys

from frontend.program import main

sys.exit(main())
