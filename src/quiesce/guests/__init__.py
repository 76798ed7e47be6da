"""Guests behind one port. Our agent, VSS, or a script in memory holds the applications."""
