"""Scoring child models with the weights that they inherit."""
