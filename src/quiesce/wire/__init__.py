"""Messages and framing between host and guest agent, for both sides. Python 3.9, standard library only."""
