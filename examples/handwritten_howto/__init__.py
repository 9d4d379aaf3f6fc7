"""Handwritten how-to videos: the library's main job on real scans. See README.md here."""
