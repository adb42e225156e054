"""Draw the library of galaxies and stars: python scripts/simulate.py --config configs/demo.yaml."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
