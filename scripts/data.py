"""Check data sets: python scripts/data.py verify FOLDER; list tells how to get them."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
