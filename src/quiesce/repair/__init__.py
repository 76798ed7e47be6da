"""Faults that `doctor` finds outside a VM's present disks, and their repair: interrupted imports, VMs that libvirt lost."""
