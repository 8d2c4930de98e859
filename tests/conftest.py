import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
