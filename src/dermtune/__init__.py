"""dermtune: from dermoscopic images to a checked, exported model."""

import os

# Nothing phones home; these packages read it when they are imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
