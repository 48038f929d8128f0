"""A gradient's way through a server: connections, the common order, the update, the reply."""
