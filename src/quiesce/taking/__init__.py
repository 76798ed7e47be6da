"""How a checkpoint is taken: what is planned, one VM's part of it, and the three ways to take its disks."""
