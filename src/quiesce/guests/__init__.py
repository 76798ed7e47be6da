"""Guests, asked to bring their applications to rest: by our agent, by VSS, or by a script in memory."""
