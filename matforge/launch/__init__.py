"""From a login node to a running driver: one allocation, one Flux broker a node, the driver in that."""
