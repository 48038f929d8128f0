"""A ring that is made anew when a worker is lost."""
