"""Make a scene of archive files: python scripts/ingest.py euclid-q1 FILE … --output FOLDER."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
