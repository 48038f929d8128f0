"""Where trainings are that can be shown: run folders, processes on this machine, a cluster."""
