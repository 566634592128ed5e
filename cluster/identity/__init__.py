"""Who is asking, and the proofs that travel with a call."""
