"""The freeze window: `machine` decides, purely, what comes next; `driver` does it."""
