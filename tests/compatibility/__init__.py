"""What ordinary scripts do, in every mode: the table behind docs/compatibility.md."""
