"""Hypothesis for all tests: no time limit per example, as the machines that run this are small and busy."""

from hypothesis import settings

settings.register_profile("quiesce", deadline=None, database=None, max_examples=80)
settings.load_profile("quiesce")
