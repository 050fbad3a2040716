"""``python -m pyro_vaeflow`` is ``vaeflow``."""

import sys

from pyro_vaeflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
