"""A worker's exchange with parameter servers: gradients out, fresh parameters in."""
