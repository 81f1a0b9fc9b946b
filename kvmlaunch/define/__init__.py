"""Definition: TOML text becomes a VM as written, every mistake at once."""
