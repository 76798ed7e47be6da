"""What the host knows of applications: one file an application, named as its writer in `quiesce.agent.writers`. Pure: no I/O.

To add one: a file with a subclass of `Application` and a table `APPLICATIONS`, and a line in registry.py. `Application` itself
says what holds for an application without a file.
"""
