"""Makes the small example: `python data/make_small.py` writes small-mlp.npz, small-inputs.npy and small-targets.npy beside itself."""

from pathlib import Path

import numpy as np

from hpcHess.networks.datasets import load
from hpcHess.networks.fit import fit

HERE = Path(__file__).resolve().parent
SAMPLES = 50

inputs, labels = load("digits")
network = fit(inputs, labels, hidden=[16], epochs=80, seed=0)
np.savez(HERE / "small-mlp.npz", **{key: array.astype(np.float32) for key, array in network.to_arrays().items()})
np.save(HERE / "small-inputs.npy", inputs[:SAMPLES])
np.save(HERE / "small-targets.npy", labels[:SAMPLES])
