"""`python -m bitswitch`, and with it `torchrun -m bitswitch`."""

import sys

from bitswitch.cli import main

if __name__ == "__main__":
    sys.exit(main())
