"""`python -m onnxpress`, where the command itself is not on the path."""

import sys

from onnxpress.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
