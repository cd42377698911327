"""Whole losses, as the users of another library call them: a file a library, theirs against ours in its place."""
