"""The parts of bench/gpu_check.sh, each a module that runs alone: `python -m bench.gpu.<part>`."""
