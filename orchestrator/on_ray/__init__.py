"""Everything that touches Ray: actors, training, search and retraining on a cluster."""
