"""Kernels written for one kind of hardware, imported only when a backend launches them."""
