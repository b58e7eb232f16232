"""`make test-faults`: commands are killed, starved and given damaged files; what is lost or unclear is counted."""
