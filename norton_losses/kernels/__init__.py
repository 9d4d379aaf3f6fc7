"""What computes without holding what the definitions would; loaded by what launches it."""
