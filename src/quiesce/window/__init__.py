"""The freeze window: `machine` decides which steps come next (pure), `driver` runs them."""
