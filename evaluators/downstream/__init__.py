"""Downstream tasks: GLUE and SQuAD, their files, metrics and trivial baselines."""
