"""What things are: names, grades, the checkpoint tree, errors, events. Pure; imports nothing of ours."""
