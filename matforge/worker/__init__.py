"""What runs on a node: one agent, which runs no user code, and its slots, which do."""
