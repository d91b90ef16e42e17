"""The network, its search space, its data and its training; runs without Ray."""
