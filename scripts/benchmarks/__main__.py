"""How fast, how lean and how good is this beside transformers, Accelerate, setfit and PEFT? `scripts/benchmark --help`."""

import sys

from command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
