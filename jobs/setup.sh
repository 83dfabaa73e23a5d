#!/usr/bin/env bash
# Set-up on Debian and Ubuntu: system packages, the virtual environment .venv, the project itself (editable).
#
#   bash jobs/setup.sh          install what is missing (well under 2 s when nothing is)
#   source jobs/setup.sh        the same, then put .venv first on PATH and set the environment of every run
#
# HPCHESS_WITH_SLURM=1          also the packages of the scheduler (only tests need them)
# HPCHESS_WITH_TORCH=1          also PyTorch for CPUs and onnx
# HPCHESS_WITH_NVRTC=1          also NVIDIA's runtime compiler (90 MB, no driver): tests compile the CUDA kernels with it
# HPCHESS_SETUP=skip            install nothing, use the Python that is first on PATH (conda, module systems: docs/INSTALL.md)

HPCHESS_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

hpchess_apt_packages() {
  echo python3-venv python3-dev python3-numpy python3-mpi4py python3-petsc4py-real python3-slepc4py-real python3-h5py python3-h5py-mpi \
    libopenblas0-pthread libopenblas-pthread-dev openmpi-bin libopenmpi-dev cmake ninja-build g++
  [ "${HPCHESS_WITH_SLURM:-0}" != 1 ] || echo slurmctld slurmd slurm-client munge
}

hpchess_say() { echo "hpcHess set-up: $*" >&2; }
hpchess_fail() { echo "hpcHess set-up: error: $*" >&2; exit 1; }

# hpchess_step WHAT COMMAND...: output goes to the log; on failure WHAT and the log's end are shown
hpchess_step() {
  local what=$1; shift
  hpchess_say "$what"
  { echo "== $what: $*"; "$@"; } >>"$HPCHESS_LOG" 2>&1 </dev/null && return 0
  tail -n 25 "$HPCHESS_LOG" >&2
  hpchess_fail "failed: $what (everything it said: $HPCHESS_LOG)"
}

hpchess_apt() {
  local packages missing as_root=()
  packages=$(hpchess_apt_packages | tr '\n' ' ')
  # shellcheck disable=SC2086  # one word a package
  missing=$(comm -23 <(printf '%s\n' $packages | sort) \
    <(dpkg-query -W -f='${Package} ${db:Status-Status}\n' $packages 2>/dev/null | sed -n 's/ installed$//p' | sort) | tr '\n' ' ')
  missing=${missing% }
  [ -n "$missing" ] || return 0
  local install="apt-get install -y --no-install-recommends $missing"
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && [ -t 2 ] && sudo -v; }; }; then
      as_root=(sudo)
    else
      hpchess_fail "these packages are missing and neither root nor sudo is available: $missing
  Ask an administrator to run:  apt-get update && $install
  Without one: conda or a module system, docs/INSTALL.md"
    fi
  fi
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -q)
  # a third-party source that does not answer must not stop what the other sources offer
  (hpchess_step "updating the package lists" "${apt[@]}" update) || hpchess_say "going on with the package lists there are"
  # shellcheck disable=SC2086
  (hpchess_step "installing Debian packages: $missing" "${apt[@]}" install -y --no-install-recommends $missing) ||
    hpchess_fail "could not install: $missing
  Try:  $install
  (on Ubuntu most of them are in the component universe: add-apt-repository universe)"
}

hpchess_venv() {
  local python=/usr/bin/python3 site pip
  if [ -e .venv ] && ! grep -qs 'include-system-site-packages = true' .venv/pyvenv.cfg; then
    hpchess_fail "$HPCHESS_ROOT/.venv is a virtual environment without the system's packages: move it away and run this again"
  fi
  if ! [ "$(.venv/bin/python -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)" = "$($python -c 'import sys; print(sys.version_info[:2])')" ]; then
    hpchess_step "making the virtual environment .venv" $python -m venv --clear --system-site-packages .venv
  fi
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  ls -d /usr/lib/petscdir/petsc*/*-real/lib/python3/dist-packages /usr/lib/slepcdir/slepc*/*-real/lib/python3/dist-packages \
    >"$site/debian-petsc.pth" 2>/dev/null || hpchess_fail "petsc4py or slepc4py is not where Debian puts it (/usr/lib/petscdir, /usr/lib/slepcdir)"
  # a newer numpy than Debian's breaks Debian's petsc4py, slepc4py and h5py at import
  echo "numpy==$($python -c 'import numpy; print(numpy.__version__)')" >.venv/constraints.txt
  pip=(.venv/bin/python -m pip --disable-pip-version-check install --retries 5 -c .venv/constraints.txt)
  hpchess_step "installing Python packages" "${pip[@]}" scikit-build-core nanobind scipy scikit-learn safetensors tqdm \
    pytest pytest-mpi pytest-timeout "tomli; python_version < '3.11'"
  [ "${HPCHESS_WITH_TORCH:-0}" != 1 ] || hpchess_torch
  [ "${HPCHESS_WITH_NVRTC:-0}" != 1 ] || hpchess_step "installing NVIDIA's runtime compiler" "${pip[@]}" "nvidia-cuda-nvrtc-cu12>=12.4"
  hpchess_step "building and installing hpcHess (editable)" "${pip[@]}" --no-build-isolation --no-deps -e .
  hpchess_step "importing the packages" .venv/bin/python -c '
import h5py, numpy, petsc4py.PETSc, scipy.linalg, slepc4py.SLEPc, sklearn
from mpi4py import MPI
assert h5py.get_config().mpi, "h5py is the serial build"
import hpcHess, hpcHess._native
print("Python packages are complete:", MPI.Get_library_version().split(",")[0])'
}

# the newest PyTorch of PyPI brings gigabytes of CUDA, PyTorch's own index has the build for CPUs; pip tries an index that does not answer
# for half a minute, so it is asked for only where it answers; where neither is reached a mirror may hold this version
hpchess_torch() {
  local index=()
  if .venv/bin/python -c 'import socket; socket.create_connection(("download.pytorch.org", 443), 3)' 2>/dev/null; then
    index=(--extra-index-url https://download.pytorch.org/whl/cpu)
  fi
  hpchess_step "installing PyTorch and onnx" "${pip[@]}" "${index[@]}" "torch==2.13.0" "onnx>=1.14"
  hpchess_step "importing PyTorch and onnx" .venv/bin/python -c 'import numpy, onnx, torch; torch.ones(2).numpy()'
}

# hpchess_key TORCH NVRTC: what the virtual environment was made from, with PyTorch, with NVRTC where these are 1; any change of it makes set-up run again
hpchess_key() {
  { [ "$1" != 1 ] || echo torch
    [ "$2" != 1 ] || echo nvrtc
    echo "$HPCHESS_ROOT"; readlink -f /usr/bin/python3; cat pyproject.toml CMakeLists.txt jobs/setup.sh
    find hpcHess/native -type f -print0 2>/dev/null | sort -z | xargs -0r cat
    dpkg-query -W -f='${Package} ${Version}\n' python3-numpy python3-mpi4py python3-petsc4py-real python3-slepc4py-real python3-h5py-mpi
  } 2>/dev/null | sha256sum
}

hpchess_install() {
  cd "$HPCHESS_ROOT"
  command -v dpkg-query >/dev/null || hpchess_fail "this set-up is for Debian and Ubuntu; elsewhere see docs/INSTALL.md, then run with HPCHESS_SETUP=skip"
  mkdir -p build
  HPCHESS_LOG=$HPCHESS_ROOT/build/setup.log
  exec 9>build/setup.lock
  flock -w 1800 9 || hpchess_fail "another set-up of this folder has been running for half an hour (build/setup.lock)"
  hpchess_apt
  local torch=${HPCHESS_WITH_TORCH:-0} nvrtc=${HPCHESS_WITH_NVRTC:-0} found more
  found=$(cat .venv/setup.key 2>/dev/null) || found=
  if [ -x .venv/bin/python ] && [ -n "$found" ]; then
    for more in "$torch $nvrtc" "1 $nvrtc" "$torch 1" "1 1"; do  # what is there and not asked for: nobody minds
      # shellcheck disable=SC2086  # two words
      [ "$found" != "$(hpchess_key $more)" ] || return 0
    done
  fi
  rm -f .venv/setup.key
  hpchess_venv
  hpchess_key "$torch" "$nvrtc" >.venv/setup.key
  hpchess_say "done"
}

hpchess_environment() {
  if [ "${HPCHESS_SETUP:-}" != skip ]; then
    export PATH="$HPCHESS_ROOT/.venv/bin:$PATH" VIRTUAL_ENV="$HPCHESS_ROOT/.venv"
  fi
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}                # more ranks than cores
  export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}           # threads use all cores
  export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}  # a rank that waits leaves its core to one that works: 5 s instead of 50 s where cores are short
  export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}  # the same for Open MPI 5
  export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
  export H5PY_ALWAYS_USE_MPI=1  # else Debian's h5py is the serial build in one-process runs
  export PYTHONNOUSERSITE=1 PIP_USER=0  # packages in ~/.local would shadow Debian's numpy
  export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
}

hpchess_environment
if [ "${HPCHESS_SETUP:-}" = skip ]; then
  :
elif [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  hpchess_install
else
  bash "${BASH_SOURCE[0]}"
fi
