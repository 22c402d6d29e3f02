"""The published PyTorch layout and our parameter tree, both ways."""
