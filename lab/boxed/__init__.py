"""What runs in a box (lab/box.py), with the image's own Python and the agent's archive: no other part of this repository."""
