"""What other hands do to a VM that has checkpoints, at random between our verbs and during them; what becomes of it is judged.

A *hand* is one thing that somebody else does: an administrator with virsh, a backup tool, a disk that is full. A *history* is a
sequence of hands and of our verbs on one VM with real disks. `model.py` knows what each checkpoint, and the VM, must contain;
`campaign.py` runs histories, and finds the shortest one that shows a fault."""
