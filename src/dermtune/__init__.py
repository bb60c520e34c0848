"""dermtune: from dermoscopic images to a checked, exported model."""
