"""Examples: ordinary PyTorch scripts on real data that needs no download. Each also runs alone, with `python -m`."""
