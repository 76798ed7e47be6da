"""The values that all rooms share: names, grades, the checkpoint tree, errors, events. Pure; imports no other room."""
