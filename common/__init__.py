"""What models/, data/ and reproduce/ all need: one error for users, one atomic write, one safe unpickler."""
