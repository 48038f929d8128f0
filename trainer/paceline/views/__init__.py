"""What reads a training and shows it: the table, `paceline top`, `paceline trace` and `paceline report`."""
