#!/usr/bin/env bash
# The main job on real data, from nothing: set-up, then on 2 ranks compress the Gauss-Newton Hessian of a network fitted to
# scikit-learn's digits, store it, look at the file, multiply with it, solve with it, and compare with the exact matrix.
#
#   jobs/quickstart.sh [FOLDER]     results go to FOLDER (default: quickstart-output in the project)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/quickstart-output}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
source "$root/jobs/setup.sh"
cd "$folder"
SECONDS=0

driver() {
  printf '\n$ mpiexec -n 2 python -m hpcHess.%s\n' "$*"
  timeout -k 5 300 mpiexec -n 2 python -m hpcHess."$@" </dev/null
}

driver compress "$root/jobs/quickstart.toml" --output digits.h5
printf '\n$ python -m hpcHess.info digits.h5 --verify\n'
python -m hpcHess.info digits.h5 --verify
python -m hpcHess.info digits.h5 --json >info.json
python -c '
import json, numpy
N = json.load(open("info.json"))["n_params"]
numpy.save("vectors.npy", numpy.random.default_rng(0).standard_normal((N, 20)))'
driver multiply digits.h5 --input vectors.npy --output product.npy
driver multiply digits.h5 --input vectors.npy --output product-exact.npy --exact
driver solve digits.h5 --rhs vectors.npy --output solution.npy --damping '0.01*lmax'
driver solve digits.h5 --rhs vectors.npy --output solution-exact.npy --damping '0.01*lmax' --refine exact

python -c '
import json, numpy
info = json.load(open("info.json"))
error = info["error_estimate"]
load = lambda name: numpy.load(name).astype(float)
difference = lambda name: numpy.linalg.norm(load(f"{name}.npy") - load(f"{name}-exact.npy")) / numpy.linalg.norm(load(f"{name}-exact.npy"))
rows = [
    ("parameters N", "{:,}".format(info["n_params"])),
    ("storage, % of N²", "{:.3f}".format(info["storage_percent"])),
    ("‖H̃ − H‖/‖H‖ asked", "{:.1e}".format(info["rtol"])),
    ("‖H̃ − H‖/‖H‖ estimated (95 %)", "{value:.2e}  ({low:.2e} … {high:.2e})".format(**error)),
    ("‖H̃V − HV‖/‖HV‖, 20 random vectors", "{:.2e}".format(difference("product"))),
    ("‖X̃ − X‖/‖X‖, damping 0.01 λ_max", "{:.2e}".format(difference("solution"))),
]
print()
for name, value in rows:
    print(f"{name:<38}{value}")'
printf '\nDone in %s s; the factor file and the vectors are in %s\n' "$SECONDS" "$folder"
