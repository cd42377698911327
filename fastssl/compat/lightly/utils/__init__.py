"""lightly.utils."""
