"""Other libraries' names and signatures, to the letter: changing the import line is the whole migration.

What differs on purpose stands in docs/migrating.md.
"""
