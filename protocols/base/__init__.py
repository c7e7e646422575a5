"""What every protocol builds on: the ring, shares, random streams, lanes, declared cost."""
