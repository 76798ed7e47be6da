"""What lies beside a VM's disks: whose each image is, how images are made, merged and removed."""
