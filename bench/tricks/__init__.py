"""What each trick does to the test error on noisy digits; `python -m bench.tricks --help`."""
