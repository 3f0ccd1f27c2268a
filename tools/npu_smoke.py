"""`python -m tools.device_smoke --device npu`, with the same options behind it."""

import sys

from tools.device_smoke import main

if __name__ == "__main__":
    sys.exit(main(["--device", "npu", *sys.argv[1:]]))
