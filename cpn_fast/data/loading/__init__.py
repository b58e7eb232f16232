"""From records to augmented crops, counted randomness included."""
