"""What each method learns of CIFAR-10: one small encoder, one budget, several seeds."""
