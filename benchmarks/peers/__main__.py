"""python benchmarks/peers --data webqa_en.test.jsonl.gz --json out.json"""

import sys
from pathlib import Path


def run() -> None:
    sys.path[0] = str(Path(__file__).parent.parent)  # was this folder, of whose modules none is to stand first

    from peers.cli import main

    main(prog_name="benchmarks/peers")


if __name__ == "__main__":
    run()
