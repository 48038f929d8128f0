"""A server's part in checkpoints: saving what it holds, and going on from one."""
