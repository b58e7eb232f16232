"""What every network's inference shares."""
