"""The service that takes and removes automatic checkpoints."""
