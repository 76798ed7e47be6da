"""What runs as a service: automatic checkpoints."""
