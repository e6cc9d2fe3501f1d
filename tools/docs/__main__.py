"""`python tools/docs [ROOT] [--check]`: write the generated parts of the docs, or check them."""

import sys

from pages import main

sys.exit(main())
