"""A driver to be killed: runs the sweep that was pickled into the file it is given."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from tas_ray.cluster.sweep import sweep

if __name__ == "__main__":
    print(sweep(pickle.loads(Path(sys.argv[1]).read_bytes())))
