"""The Kubernetes objects of a training, their names and their labels."""
