"""AES-128: under fixed keys, in counter mode, and on the processor's own instructions."""
