"""Words and exit codes; no decisions."""
