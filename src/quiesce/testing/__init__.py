"""For people who write a requester, or a writer."""
