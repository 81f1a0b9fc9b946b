"""Frozen values and their invariants; no decisions."""
