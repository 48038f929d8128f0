"""The calls to the API server and to pods: lists, watches, writes, the Lease."""
