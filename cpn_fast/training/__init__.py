"""What every training shares: the loop, its step, settings, guard and logs."""
