"""``python -m jointdiff simulate|train|reconstruct|evaluate``."""

import sys

from jointdiff import cli


def main() -> int:
    """Run the command line of this process."""
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
