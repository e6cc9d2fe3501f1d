"""The scripts of benchmarks/peers are no package; they are imported as they import each other."""

import sys
from pathlib import Path

PEERS = Path(__file__).parents[3] / "benchmarks" / "peers"
sys.path.insert(0, str(PEERS))
sys.path.insert(0, str(PEERS / "workers"))
