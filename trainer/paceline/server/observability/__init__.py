"""What only observes: step statistics, verdicts, comparisons between workers, the log of steps."""
