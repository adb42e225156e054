"""Train the denoiser: accelerate launch --config_file configs/accelerate/single.yaml scripts/train.py."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
