"""Record the trajectories anew."""

import json
import os
import tempfile
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import torch

from tests import golden

if __name__ == "__main__":
    torch.set_num_threads(1)
    found: dict[str, object] = {"machine": golden.machine()}
    with tempfile.TemporaryDirectory() as folder:
        for way in golden.WAYS:
            found[way] = golden.trajectory(way, Path(folder) / way)
    golden.RECORDED.write_text(json.dumps(found) + "\n")
