"""Runs a training on this machine: one process for each replica, as a cluster would run one pod."""
