"""Which workers there are, and what they hold in common: connections, joins, leaves, losses, key-value store."""
