"""The worker's side: watching gradients, exchanging them for parameters, and measuring where the time goes."""
