"""The losses in other frameworks, a file each; lines that matter are marked with ``# <-``."""
