"""Sample the sharp sky of scenes: python scripts/reconstruct.py --scene FILE --output FOLDER."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["reconstruct", *sys.argv[1:]]))
