"""The command line: one file a verb, each with its `command`. `quiesce group create` is group_create.py."""
