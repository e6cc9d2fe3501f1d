"""`python -m outrider` is the command line; `accelerate launch -m outrider train ...` starts it on several GPUs."""

import sys

from outrider.cli import main

if __name__ == "__main__":
    sys.exit(main())
