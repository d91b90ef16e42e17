"""Measurements of what the README and the documents claim; each prints one JSON line last."""
