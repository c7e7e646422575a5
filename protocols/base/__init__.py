"""What every protocol is written in: the ring, shares, random streams, lanes, declared cost."""
