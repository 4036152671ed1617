"""`python -m kanna` is `kanna`."""

import sys

from kanna.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
