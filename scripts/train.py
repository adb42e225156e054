"""Train the denoiser: accelerate launch scripts/train.py --config configs/demo.yaml."""

import sys

from jointdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
