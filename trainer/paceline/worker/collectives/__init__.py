"""What workers give each other beside gradients: small values, and a common key-value store."""
