"""What the operator decides and writes, as pure functions of what it has observed."""
