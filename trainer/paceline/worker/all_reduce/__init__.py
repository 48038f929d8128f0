"""A worker in a ring: every worker holds the whole model, and gradients are averaged among them."""
