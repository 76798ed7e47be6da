"""Files of this machine, looked at and changed by a process that can be left behind."""
