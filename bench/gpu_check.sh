#!/usr/bin/env bash
# The one command for a machine with an NVIDIA GPU: builds the CUDA kernels, runs the tests and
# compute-sanitizer on them and on the Triton kernels, measures both, and leaves JSON, a summary and
# logs in a folder; under 8 minutes.
#
#   bench/gpu_check.sh OUT_DIR [--dry-run] [--quick]       all options: bench/gpu_check.sh --help
#
# --dry-run rehearses all of it but the launches, on a machine without a GPU; the Triton kernels too
# with TRITON_INTERPRET=1. PYTHON names the interpreter (default: python3), which needs torch, pytest
# and, to build, ninja and pybind11.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "gpu_check.sh: no interpreter $python; set PYTHON" >&2
  exit 2
fi
if ! "$python" -c "import torch, pytest" 2>/dev/null; then
  echo "gpu_check.sh: $python lacks torch or pytest; set PYTHON, for example PYTHON=.venv/bin/python" >&2
  exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -u -m bench.gpu.check "$@"
