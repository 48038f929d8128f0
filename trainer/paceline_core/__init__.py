"""What a training means: its specification, its rules and its plans. Pure: no tensors, sockets or clock."""
