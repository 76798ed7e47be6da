"""The verbs, one file for each. An operation takes a Context, and returns a value or raises a QuiesceError."""
