"""Score a trained run: python scripts/evaluate.py --config configs/demo.yaml."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
