"""One thread for each of PyTorch's kernels, in all tests: with more, sums are in another order, and equal is not equal."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is loaded; a thread started later takes it from here as well
