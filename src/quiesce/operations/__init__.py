"""One file a verb. An operation takes a Context, does its work, and returns a value or raises a QuiesceError."""
