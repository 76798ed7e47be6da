"""Measurements. Every figure in README and docs comes from here; the machines are noisy, so ratios within one run count."""
