"""Wishes and the host's knobs become settings, and the files that keep them; pure."""
