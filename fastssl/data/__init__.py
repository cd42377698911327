"""Images into memory, views out of them: sources, view plans, augmentation, the training loader."""
