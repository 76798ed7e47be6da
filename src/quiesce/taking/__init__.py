"""How a checkpoint is taken: the plan, one VM's part of the checkpoint, and the three ways to take its disks."""
