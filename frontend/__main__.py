"""`python -m frontend`: serve completions."""

import sys

from frontend.main import main

sys.exit(main())
