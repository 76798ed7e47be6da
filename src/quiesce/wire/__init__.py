"""Messages and framing between host and guest agent. Standard library only, Python 3.9; both sides use it."""
