"""Runs inside a virtual machine: the service on the virtio-serial port, filesystems, dead-man, writers.

Python 3.9, standard library plus what the zipapp carries. Processes:

    service          waits for the host; idle, holds nothing
    └── conversation one while a host is connected; holds the writers' sessions; dies with the service
        └── dead-man one during an attempt; locked in memory; thaws when the deadline passes or the conversation dies
"""
