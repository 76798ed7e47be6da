"""Measurements. Every figure in README and docs comes from here. The machines are noisy, so compare figures of one run only."""
