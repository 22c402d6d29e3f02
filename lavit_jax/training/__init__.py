"""State, optimizer, losses, one step per objective and one loop for all."""
